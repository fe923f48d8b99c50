# shellcheck shell=bash
# Which cluster `make up` and `make e2e` act on, and how images get there. Sourced after tests/cluster/lib.sh.
#   CLUSTER=kind (default)   the local cluster of tests/cluster; images are loaded into its nodes
#   CLUSTER=existing         what KUBECONFIG names; images are pushed to REGISTRY (such as registry.example/team)
# Images travel under a tag of their own content, so that a changed image is also a changed manifest.

cluster_kind=${CLUSTER:-kind}

bring_up_cluster() {
  case $cluster_kind in
    kind)
      "$repo/tests/cluster/cluster" up
      eval "$("$repo/tests/cluster/cluster" env)";;
    existing)
      [[ -n ${KUBECONFIG:-} ]] || die "CLUSTER=existing needs KUBECONFIG" "Name the file of the cluster to use; the default context is never assumed."
      [[ -n ${REGISTRY:-} ]] || die "CLUSTER=existing needs REGISTRY" "Name where its nodes pull images from, such as REGISTRY=registry.example/team."
      "$repo/tests/cluster/engine" up; find_engine
      local name
      for name in kubectl helm; do
        command -v "$name" >/dev/null || PATH=$("$repo/tests/cluster/get-programs" kubectl helm):$PATH
      done
      kubectl version >/dev/null || die "the cluster that KUBECONFIG=$KUBECONFIG names does not answer";;
    *) die "CLUSTER=$cluster_kind is neither kind nor existing";;
  esac
}

content_tag() { echo "dev-$(docker image inspect --format '{{.Id}}' "$1" | sed 's/^sha256://' | cut -c1-12)"; }

# Builds both images, brings them to the cluster, and says in EXO_HELM_ARGS and EXO_NODE_IMAGE what they are called there.
bring_images() {
  exec 7>"$CACHE/images.lock"; flock 7        # another run would take away this one's tags
  "$repo/hack/images" node-model operator
  local name reference prefix=${REGISTRY:+$REGISTRY/} all=(exo-node:dev exo-operator:dev) pushed=()
  if [[ $cluster_kind = kind ]]; then prefix=; fi
  EXO_HELM_ARGS=
  for name in exo-node exo-operator; do
    reference=$prefix$name:$(content_tag "$name:dev")
    docker tag "$name:dev" "$reference"
    all+=("$reference")
    pushed+=("$reference")
    case $name in
      exo-node) EXO_NODE_IMAGE=$reference; EXO_HELM_ARGS+=" --set-string nodeImage.repository=$prefix$name,nodeImage.tag=${reference##*:}";;
      exo-operator) EXO_HELM_ARGS+=" --set-string image.repository=$prefix$name,image.tag=${reference##*:}";;
    esac
  done
  # Tags of earlier contents would keep their layers for ever.
  docker image ls --format '{{.Repository}}:{{.Tag}}' | grep -E '^exo-(node|operator):dev-[0-9a-f]{12}$' |
    grep -vxF "$(printf '%s\n' "${all[@]}")" | xargs -r docker rmi >/dev/null 2>&1 || true
  if [[ $cluster_kind = kind ]]; then "$repo/tests/cluster/cluster" load-image "${all[@]}"; fi
  exec 7>&-
  if [[ $cluster_kind = existing ]]; then
    for reference in "${pushed[@]}"; do step "Image $reference: push" docker push "$reference"; done
  fi
  export EXO_NODE_IMAGE EXO_HELM_ARGS
}

# A run killed in mid-upgrade leaves its release marked as pending, and helm refuses every later one. Nobody else installs
# into a cluster of our own, so a pending release there has no owner any more.
clear_pending_release() {
  [[ $cluster_kind = kind ]] || return 0
  kubectl delete secret --namespace "$1" --ignore-not-found \
    --selector "owner=helm,name=exo-operator,status in (pending-install,pending-upgrade,pending-rollback)"
}
