# The image of podwire for Kubernetes: static programs and nothing else, from dist/, which `make build` fills:
#   make build && docker build --tag podwire .        # or podman, or buildah
# `make image` makes the same image without any of them.
FROM scratch
COPY dist/podwire dist/podwire-ipam dist/podwired dist/podwirectl /usr/local/bin/
ENV PATH=/usr/local/bin
LABEL org.opencontainers.image.title="podwire" \
      org.opencontainers.image.description="Pod network for Kubernetes: the agent and the CNI plugins" \
      org.opencontainers.image.licenses="Apache-2.0"
ENTRYPOINT ["/usr/local/bin/podwired"]
