# What a developer runs. "make" alone prints this list.
#
# Settings, for example  make test PKG=./adapters/kafka/... ARGS='-run Ack -v'
#   PKG      packages                       (./...)
#   ARGS     further arguments of go test
#   BROKERS  brokers to start               (kafka,rabbitmq,sqs,sns)
#   P        packages tested side by side   (1: brokers need cores too)
#   TIMEOUT  of one package's tests         (20m)
#   FUZZTIME of each fuzz target            (20s)

PKG      ?= ./...
ARGS     ?=
BROKERS  ?= kafka,rabbitmq,sqs,sns
P        ?= 1
TIMEOUT  ?= 20m
FUZZTIME ?= 20s

GOLANGCI_VERSION := v2.15.0
HELM_VERSION     := v3.22.0

GO     ?= go
BIN    := $(CURDIR)/bin
RUNNER := $(BIN)/brokers
LINTER := $(BIN)/golangci-lint
HELM   := $(BIN)/helm-$(HELM_VERSION)
ENV    := $(CURDIR)/.cache/brokers.env

GOTEST := $(GO) test -p $(P) -parallel 4 -timeout $(TIMEOUT)

# Tests that are not to see a broker: no endpoint of the developer's shell.
NO_BROKERS := env -u BROKER_TEST_KAFKA -u BROKER_TEST_RABBITMQ -u BROKER_TEST_SQS -u BROKER_TEST_SNS

.DEFAULT_GOAL := help
.PHONY: help test test-fast test-race conformance guarantees bench fuzz lint images image deploy-check up down env status cover engine runner clean

help: ## print this list
	@awk '!/^#/ { exit } { sub(/^# ?/, ""); print }' $(MAKEFILE_LIST)
	@echo; echo 'Targets'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'

test: engine runner ## run all tests on real brokers, which it installs, builds and starts as needed
	$(RUNNER) -only $(BROKERS) run -- $(GOTEST) $(ARGS) $(PKG)

test-race: engine runner ## the same with the race detector
	$(RUNNER) -only $(BROKERS) run -- $(GOTEST) -race $(ARGS) $(PKG)

test-fast: ## run everything that needs no broker, below a minute
	$(NO_BROKERS) $(GO) test -short -timeout 2m $(ARGS) $(PKG)

conformance: engine runner ## run the conformance suite alone, on every adapter
	$(RUNNER) -only $(BROKERS) run -- $(GOTEST) -run Conformance $(ARGS) ./conformance/... ./adapters/...

guarantees: engine runner ## run the conformance suite and write docs/guarantees.md from its reports
	rm -rf .cache/reports
	CONFORMANCE_REPORTS=$(CURDIR)/.cache/reports $(RUNNER) -only $(BROKERS) run -- $(GOTEST) -run 'Conformance|TestMemory(Queue|Stream)$$' $(ARGS) ./conformance ./adapters/...
	$(GO) run ./conformance/cmd/guarantees $$(ls .cache/reports/*.json | grep -v kfake) > docs/guarantees.md

cover: engine runner ## run all tests and write coverage.out and coverage.html
	$(RUNNER) -only $(BROKERS) run -- $(GOTEST) -coverpkg=./... -coverprofile=coverage.out $(ARGS) $(PKG)
	$(GO) tool cover -html=coverage.out -o coverage.html
	@$(GO) tool cover -func=coverage.out | tail -n 1

bench: engine runner ## run the benchmarks on real brokers
	@if [ -f benchmarks/go.mod ]; then \
		exec $(RUNNER) -only $(BROKERS) run -- $(GO) -C benchmarks run . $(or $(ARGS),-out RESULTS.md); \
	else echo 'bench: there is no module benchmarks/ in this checkout'; fi

fuzz: ## run every fuzz target for FUZZTIME
	@GO='$(GO)' scripts/fuzz.sh '$(FUZZTIME)' $(PKG)

lint: $(LINTER) ## run golangci-lint (built into ./bin the first time)
	$(LINTER) run ./...

images: engine runner ## build the brokers' images that are missing (FORCE=1: all of them)
	$(RUNNER) -only $(BROKERS) $(if $(FORCE),-force) images

image: ## build the images of the bridge and of the workers for a first try
	@GO='$(GO)' scripts/image.sh

deploy-check: $(HELM) ## check the shipped configurations, chart, dashboard and image
	@GO='$(GO)' HELM=$(HELM) scripts/deploy-check.sh

up: engine runner ## start brokers for the day and print what to export
	@$(RUNNER) -only $(BROKERS) -file $(ENV) up
	@echo '# to load it:  eval "$$(make -s env)"' >&2

down: runner ## remove the brokers of "make up"
	@$(RUNNER) -file $(ENV) down

env: runner ## print what to export while "make up" runs: eval "$(make -s env)"
	@$(RUNNER) env

status: runner ## list the brokers of "make up"
	@$(RUNNER) status

clean: ## remove what was built here (brokers and images stay)
	rm -rf $(BIN) .cache coverage.out coverage.html

# The engine is needed only where there is one to be had; without it the runner
# says what is not run, and fails when CI=true.
engine:
	@scripts/engine.sh || [ $$? = 3 ]

runner:
	@$(GO) build -o $(RUNNER) ./conformance/containers/cmd/brokers

# The file's name carries the version, so that a new one is built.
$(LINTER): $(LINTER)-$(GOLANGCI_VERSION)
	@ln -sf $(notdir $<) $@

$(LINTER)-$(GOLANGCI_VERSION):
	@echo 'lint: building golangci-lint $(GOLANGCI_VERSION), once (some minutes)'
	@mkdir -p $(BIN)/.lint
	GOBIN=$(BIN)/.lint $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	@mv $(BIN)/.lint/golangci-lint $@ && rmdir $(BIN)/.lint

$(HELM):
	@echo 'deploy-check: building helm $(HELM_VERSION), once'
	@mkdir -p $(BIN)/.helm
	GOBIN=$(BIN)/.helm $(GO) install helm.sh/helm/v3/cmd/helm@$(HELM_VERSION)
	@mv $(BIN)/.helm/helm $@ && rmdir $(BIN)/.helm
