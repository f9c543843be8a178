//! What a Kubernetes cluster is given: the manifests, and the image that they name.

mod image;
mod manifests;
mod policy;
mod rendered;
