# make help lists the targets. Everything that is needed is fetched or built:
# Go and make are all a machine must have.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Tools are pinned in modules of their own, so that their dependencies stay out of
# ours; -modfile lets them run on this tree.
tool = go tool -modfile=test/tools/$(1)/go.mod $(1)

# Modules to vet. test/conformance is left out: vetting Istio takes minutes, and go test vets
# what it compiles.
MODULES := . test/controlplane test/e2e test/formats

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: demo
demo: ## Show Meshvakt at work on a real control plane (KEEP=1 leaves it up)
	@go run -C test/e2e ./demo $(if $(KEEP),-keep)

.PHONY: test
test: generated lint control-plane unit conformance harness e2e ## Run everything

.PHONY: control-plane
control-plane: ## Build etcd, Kubernetes, istiod, an S3 server and a witness from Go modules (cached outside the tree)
	@echo '== control plane: building what is not in the cache; cold this takes about 20 minutes'
	@go run -C test/controlplane ./cmd/controlplane build --istio --evidence

# The rules are pure functions, tried with tens of thousands of random pods and with each of their conditions
# taken out. The race detector would make that five times as long. It watches them in the webhook's own
# tests and, many at once, in the end-to-end tests.
PURE := /(policies|test/mutation(/.*)?)$$

.PHONY: unit
unit: ## Unit, HTTP, corpus, chart and architecture tests, with the race detector
	@echo '== unit tests'
	@go test -race -timeout 20m $$(go list ./... | grep -vE '$(PURE)')
	@go test -timeout 20m $$(go list ./... | grep -E '$(PURE)')
	@cd test/formats && go test ./...

.PHONY: mutation
mutation: ## List which case of the corpus holds which rule of the policies
	@go test -count=1 -v -run TestEveryRuleIsHeldByACase ./test/mutation

.PHONY: conformance
conformance: ## Compare with Istio's own code and with the scheduler's what we restate of theirs
	@echo '== conformance with Istio'
	@cd test/conformance && CGO_ENABLED=0 go test ./...
	@echo '== conformance with the scheduler'
	@cd test/conformance/scheduler && CGO_ENABLED=0 go test ./...

.PHONY: harness
harness: ## Tests of the control plane itself
	@echo '== control plane tests'
	@cd test/controlplane && go test ./...

# The end-to-end tests are in three parts: tests that boot control planes of their own, most with istiod, and beside
# them all that share one; and behind both, with the machine for themselves, tests in which time must pass, long
# enough that the error of the machine's clock does not hide what is recorded.
OWN_PLANE := ^(TestAdmissionPolicy|TestChartEvidence|TestInjectorGoes|TestIstioObjects|TestKeeper|TestMembership|TestPlacement|TestPreflight|TestSamples|TestScan|TestSidecar|TestWithIstio)
TIME_PASSES := ^(TestAPIServer|TestEvidenceKilled|TestEvidenceOracle|TestEvidenceQuarter|TestFleet)

.PHONY: e2e e2e-own e2e-shared e2e-time
e2e: ## The real binary, built with the race detector, against a real control plane
	@echo '== end-to-end tests'
	@$(MAKE) --no-print-directory -j2 e2e-own e2e-shared
	@$(MAKE) --no-print-directory e2e-time
e2e-own:
	@cd test/e2e && E2E_RACE=1 go test -timeout 45m -run '$(OWN_PLANE)' .
e2e-shared:
	@cd test/e2e && E2E_RACE=1 go test -timeout 45m -skip '$(OWN_PLANE)|$(TIME_PASSES)' ./...
e2e-time:
	@cd test/e2e && E2E_RACE=1 go test -timeout 45m -run '$(TIME_PASSES)' .

.PHONY: bench
bench: ## Speed of the webhook against two baselines in the same run
	@go test -run '^$$' -bench . -benchtime 2s ./webhook/... ./policies/... ./internal/mesh/... ./internal/nodes/... ./internal/cluster/... ./internal/check/...

.PHONY: bench-evidence
bench-evidence: ## What a record costs, against a bare group commit, and how fast evidence is sealed and verified
	@go test -run '^$$' -bench 'Decided|Backlog|AMillionRecords' ./internal/evidence/journal ./internal/evidence/seal ./internal/evidence/verify

.PHONY: fuzz
fuzz: ## Fuzz the HTTP edge, the readers of objects and of evidence, and the resolver, a minute each
	@go test -run '^$$' -fuzz FuzzReview -fuzztime 1m ./webhook
	@go test -run '^$$' -fuzz FuzzChecked -fuzztime 1m ./internal/objects
	@go test -run '^$$' -fuzz FuzzResolve -fuzztime 1m ./internal/mesh
	@go test -run '^$$' -fuzz FuzzParse -fuzztime 1m ./internal/evidence/record

.PHONY: lint
lint: ## Lint all modules
	@echo '== lint'
	@for m in $(MODULES); do (cd $$m && CGO_ENABLED=0 go vet ./...); done
	@$(call tool,golangci-lint) run ./...

.PHONY: generate
generate: ## Regenerate deep copies, CRDs, admission policies and generated documents
	@$(call tool,controller-gen) object paths=./api/... paths=./internal/objects/...
	@$(call tool,controller-gen) crd:maxDescLen=600 paths=./api/... output:crd:dir=charts/meshvakt/files/crds
	@go test ./policies/celpack -run TestGenerated -update

.PHONY: generated
generated: generate ## Fail when generated files are not up to date
	@git diff --exit-code -- api internal/objects charts docs || { echo 'generated files are out of date: commit what make generate wrote'; exit 1; }

.PHONY: build
build: ## Build the binary into bin/
	@CGO_ENABLED=0 go build -trimpath -o bin/meshvakt ./cmd/meshvakt
