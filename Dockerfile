# The image of Meshvakt: one static binary and nothing else. The build stage needs
# .git, from which the Go tool takes the version that `meshvakt version` prints.
ARG GO_VERSION=1.26

FROM --platform=$BUILDPLATFORM golang:${GO_VERSION} AS build
ARG TARGETOS=linux
ARG TARGETARCH
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 GOOS=${TARGETOS} GOARCH=${TARGETARCH} \
    go build -trimpath -ldflags="-s -w" -o /out/meshvakt ./cmd/meshvakt

# The process talks to the API server alone, whose CA comes with its
# ServiceAccount: there is no need for the certificates, shell or libraries of a
# distribution.
FROM scratch
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="meshvakt" \
      org.opencontainers.image.source="https://github.com/meshvakt/meshvakt" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /out/meshvakt /meshvakt
USER 65532:65532
EXPOSE 9443 8081
ENTRYPOINT ["/meshvakt"]
