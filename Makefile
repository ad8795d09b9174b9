# Two commands on a fresh Debian-like machine: `make run` and `make test`. Both set up what they need.

.PHONY: run test bench conform lint setup clean

run: setup
	.venv/bin/memhp run examples/twin.yaml

test: setup
	.venv/bin/python -m pytest

bench: setup
	.venv/bin/python -m bench

# Beside real kernels: the whole library, and more than 5,000 generated steps on each. Needs QEMU and `memhp lab fetch`.
conform: setup
	.venv/bin/memhp conform --live
	.venv/bin/memhp conform --generate 52 --steps 100

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

setup: .venv/ready

.venv/ready: pyproject.toml scripts/setup
	scripts/setup
	touch .venv/ready

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info src/*.egg-info
