# The environments live in the user's cache, one for each hash of the dependencies in setup.cfg.
.PHONY: demo test check sweep freeze bench

export PYTHONPATH := $(CURDIR)

demo:
	@python=$$(.ci/env core) && sh fixtures/demo.sh $$python

# Two processes, a module's tests in one of them.
test: check
	@python=$$(.ci/env test) && $$python -m pytest -n 2 --dist loadscope

check:
	@python=$$(.ci/env test) && $$python -m ruff format --check . && $$python -m ruff check . \
		&& $$python -m mypy

sweep:
	@python=$$(.ci/env test) && $$python -m pytest -n 2 --dist loadscope -m sweep

freeze:
	@python=$$(.ci/env test) && $$python -m ckptool.architectures.freezing

bench:
	@python=$$(.ci/env bench) && $$python -m benchmarks --only "$(ONLY)"
