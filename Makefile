# Two commands are all a newcomer needs: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
WORKERS := --numprocesses auto --dist
export PYTHONDONTWRITEBYTECODE =  # what is compiled once is there for hundreds of processes

.PHONY: demo test docs notebooks examples lint format kills s3 bench bench-long fuzz clean

demo: .venv/ready
	$(BIN)/python docs/demo/run.py

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS) loadfile  # one core per worker
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS) loadgroup -m "slow or gpu"
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.kernels  # a quick part, on another kernel of OpenBLAS

# The documentation as a site, build/docs/html/index.html: nothing is fetched, a warning is an error.
docs: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python docs/site/build.py

# Runs the notebooks of docs/notebooks and keeps what they show.
notebooks: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python docs/notebooks/run.py

# The property tests on examples of their own; `make test` draws the same ones every time.
examples: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m hypothesis --hypothesis-profile drawn

lint: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# 200 kills of the commands that write: the old output or the new one is there after each.
# 40 kills of a cluster's workers: nothing shows.
kills: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.kills 200
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.worker_kills 40

# A server of S3 on loopback. Its libraries need a python-dateutil that is older than that of .venv.
s3: .venv/s3
	OMP_NUM_THREADS=1 .venv/s3/bin/python -m pytest -m slow tests/files/storage/test_s3.py
	OMP_NUM_THREADS=1 .venv/s3/bin/python -m tests.bench.storage --s3

bench: .venv/ready
	$(BIN)/python -m tests.bench
	$(BIN)/python -m tests.bench.against_tensorly
	$(BIN)/python -m tests.bench.als_success

# Ten thousand damaged files through every command, and a table of what came of them.
fuzz: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --cases 10000 --processes 2

# The tables of docs/benchmarks.md: about an hour, and 5 GB of disk for the pair.
bench-long: .venv/bench build/pair-1b
	$(BIN)/python -m tests.bench.in_memory --markdown
	$(BIN)/python -m tests.bench.whole_model build/pair-1b --markdown
	$(BIN)/python -m tests.bench.scaling --markdown
	$(BIN)/python -m tests.bench.adapters --markdown

build/pair-1b:
	$(BIN)/python -m tests.bench.synthetic 1b $@

# The libraries that are only compared with. torchTT compiles against the torch that is there.
.venv/bench: .venv/ready
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation torchTT
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[bench]"
	touch $@

# Of its own what S3 needs, the rest of .venv.
.venv/s3: .venv/ready
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install --quiet s3fs==2026.9.0 "moto[server]==5.2.5" boto3==1.42.91
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > $@/dev
	mv $@/dev $$($@/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/zz_dev.pth

# The environment, remade when what it is made of changes.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'tdecomp needs Python 3.11 or newer: make PYTHON=python3.11')"
	@echo "Setting up .venv: about 1.7 GB and a few minutes, once."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf .venv demo-output build dist
