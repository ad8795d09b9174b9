"""The lab: real Linux kernels in QEMU guests play the scenarios that the modelled machine plays."""
