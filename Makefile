# `make demo` and `make test` do everything on a fresh machine: each makes .venv when it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.askance-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
# Real data sets for tests and experiments, where they are at hand.
export ASKANCE_DATA ?= $(if $(wildcard ../shared/data),$(abspath ../shared/data))

.PHONY: demo test acceptance lint docs bench bench-large bench-workers bench-growth bench-starting bench-bounds bench-live bench-probing bench-peers matrix soak fuzz figures protos image-check lock clean

demo: $(STAMP)
	mkdir -p build
	$(BIN)/askance demo --report build/demo-report.html $(if $(JSON),--json $(JSON))

# On two cores, file by file; PARALLEL= runs one after the other, as debuggers want it.
PARALLEL ?= -n 2 --dist loadfile --no-loadscope-reorder
test: $(STAMP)
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

# Whole commands, calibrations and installations as users run them, servers under attack: what lasts.
acceptance: $(STAMP)
	$(BIN)/python -m pytest -m acceptance $(PARALLEL) $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The documentation as a site, its links checked: open site/index.html.
docs: $(STAMP)
	$(BIN)/mkdocs build --quiet

bench: $(STAMP)
	$(BIN)/python -m benchmarks $(ARGS)

# Networks of ImageNet's size: minutes, and some gigabytes.
bench-large: $(STAMP)
	$(BIN)/python -m benchmarks.large $(ARGS)

# What several workers add to one that is pinned to a core.
bench-workers: $(STAMP)
	$(BIN)/python -m benchmarks.scaling $(ARGS)

# How readings grow with rows, width, classes, components and batch.
bench-growth: $(STAMP)
	$(BIN)/python -m benchmarks.growth $(ARGS)

# What a server takes until it serves, and of memory, by its graph and by torch.
bench-starting: $(STAMP)
	$(BIN)/python -m benchmarks.starting $(ARGS)

# What detection loses by looking at a part: ARGS="configs/mnist.toml configs/cifar10.toml".
bench-bounds: $(STAMP)
	$(BIN)/python -m benchmarks.bounds $(ARGS)

# What the live page costs a busy server, and looking for who probes.
bench-live: $(STAMP)
	$(BIN)/python -m benchmarks.looking $(ARGS)

# By how many questions a live server names who attacks it, and whom else it names: ARGS="BUNDLE CONFIG".
bench-probing: $(STAMP)
	$(BIN)/python -m benchmarks.probing $(ARGS)

# Beside MLServer, which detects nothing, in an environment of its own.
PEERS := build/peers
bench-peers: $(STAMP)
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peers/requirements.txt
	$(BIN)/python -m benchmarks.peers $(PEERS)/bin/python $(ARGS)

# Seven classifiers by one rule, every row of each: docs/results/matrix.md. Hours; go on with it, or name some: ARGS=vgg.
matrix: $(STAMP)
	$(BIN)/python -m benchmarks.matrix $(ARGS)

# A server left on for half an hour under everything at once.
soak: $(STAMP)
	rm -rf build/soak-bundle
	test -f configs/weights/digits_cnn.safetensors || $(BIN)/askance train configs/digits.toml
	$(BIN)/askance calibrate configs/digits.toml --out build/soak-bundle
	$(BIN)/python -m benchmarks.soak build/soak-bundle $(ARGS)

# A hundred thousand malformed messages, where make test sends ten thousand.
fuzz: $(STAMP)
	$(BIN)/python -m pytest tests/test_fuzz.py --hypothesis-profile=fuzz -s $(ARGS)

figures: $(STAMP)
	$(BIN)/python tools/figures.py
	$(BIN)/python tools/plots.py

protos: $(STAMP)
	$(BIN)/python -m grpc_tools.protoc -Iaskance/service/pb=proto --python_out=. --pyi_out=. --grpc_python_out=. \
		proto/askance/v1/screening.proto proto/inference/inference.proto

# The Dockerfile, built and tried for real: as root, with buildah and debootstrap. TORCH_INDEX: where pip finds torch's CPU builds.
image-check: $(STAMP)
	$(BIN)/python deploy/image/check.py $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX))

# The environment, by a stamp that changes with what is to be installed.
$(STAMP):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "askance needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[calibration,dev,bench,docs]'
	rm -f $(VENV)/.askance-*
	touch $@

# New versions of everything, within pyproject.toml's bounds.
lock:
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[calibration,dev,bench,docs]'
	{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//'; } > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) build site *.egg-info .mypy_cache .ruff_cache .pytest_cache
