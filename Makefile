# The two commands to begin with are `make demo` and `make test`. Each sets up all it needs on a machine that has
# Python 3.11, make and the package registries.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STUBS := cluster/proto/sparkpool_pb2.py
READY := $(VENV)/.ready

.PHONY: install demo test ray-up-test bench docs check sanitize format model drafter ablations clean

install: $(READY) $(STUBS)  ## all that the other targets need

demo: $(READY) $(STUBS)
	$(BIN)/python -m cluster.demo

test: $(READY) $(STUBS)  ## all tests in two processes; at the end those that start Ray, in one of them
	$(BIN)/python -m pytest --numprocesses 2

ray-up-test: $(READY) $(STUBS)  ## `ray up` over SSH to three hosts that it makes itself; part of `make test`
	$(BIN)/python -m pytest tests/deploy/test_ray_up.py

bench: $(READY) $(STUBS)  ## lists the benchmarks; NAME=decode runs one, ARGS=--quick adds options
	$(BIN)/python -m bench $(NAME) $(ARGS)

docs: $(READY) $(STUBS)  ## writes what README.md and docs/ take from code and result files
	$(BIN)/python -m bench.docs

check: $(READY) $(STUBS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tests.house

sanitize: $(READY)  ## the kernels' tests, built with AddressSanitizer and UndefinedBehaviorSanitizer
	mkdir -p build/sanitize
	for level in v3 v4; do g++ -O1 -g -std=c++17 -fopenmp -march=x86-64-$$level -fsanitize=address,undefined \
	  -fno-sanitize-recover=all -shared -fPIC engine/kernels/kernels.cpp -o build/sanitize/_kernels_$$level.so; done
	SANITIZED_KERNELS=build/sanitize ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=2 \
	  LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	  $(BIN)/python -m pytest -q tests/engine/kernels

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

model: $(READY)  ## retrain the shipped model from scratch (hours on a CPU)
	$(BIN)/python -m train tiny-mla --out models/tiny-mla

ablations: $(READY)  ## train the two drafters that bench/acceptance.py compares with (as long again, each)
	$(BIN)/sparkpool train train/ablations/dflash.yaml
	$(BIN)/sparkpool train train/ablations/rank0.yaml

drafter: $(READY)  ## retrain its drafter (half an hour on two cores)
	$(BIN)/sparkpool train models/tiny-mla-dspark/train.yaml

# torch first and pinned: any other way to ask for it can pull gigabytes of CUDA.
$(READY): pyproject.toml constraints.txt setup.py engine/kernels/kernels.cpp
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(STUBS): cluster/proto/sparkpool.proto $(READY)
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. $<

clean:
	rm -rf $(VENV) build *.egg-info cluster/proto/*_pb2* engine/kernels/*.so
