#!/usr/bin/env bash
# Runs haikd on all workers of a Cloud TPU pod slice.
#
#   launch/tpu_pod.sh NAME ZONE -- --config=configs/x.py --workdir=gs://my-bucket/x
#
# Copies this checkout to every worker, installs it there and starts it on all
# of them at once; they find one another. The workdir is in a bucket, or a folder
# that all workers mount, such as Filestore. Exits as the run does; started again,
# it goes on from the newest checkpoint.
#
#   PROJECT=ID    the project; that of gcloud's configuration by default.
#   CREATE=v5litepod-16
#                 makes the slice first, of that accelerator type.
#   VERSION=...   its software; v2-alpha-tpuv5-lite by default. The list:
#                 gcloud compute tpus tpu-vm versions list --zone=ZONE
#   SPOT=1        makes it as spot capacity.
#   MOUNT='...'   a command for each worker before the run, such as
#                 'gcsfuse --implicit-dirs my-bucket bucket'.
#   DRY_RUN=1     prints what would be run.
set -euo pipefail

if (($# < 3)) || [[ $3 != -- ]]; then
  sed -n '4p' "$0" | sed 's/^# */usage: /' >&2
  exit 2
fi
name=$1
zone=$2
shift 3

root=$(cd "$(dirname "$0")/.." && pwd)
where=("--zone=$zone")
[[ -n ${PROJECT:-} ]] && where+=("--project=$PROJECT")
tpu=(gcloud compute tpus tpu-vm)

run() {
  if [[ -n ${DRY_RUN:-} ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# Runs one command on all workers.
everywhere() {
  run "${tpu[@]}" ssh "$name" "${where[@]}" --worker=all "--command=$1"
}

if [[ -n ${CREATE:-} ]]; then
  run "${tpu[@]}" create "$name" "${where[@]}" "--accelerator-type=$CREATE" \
    "--version=${VERSION:-v2-alpha-tpuv5-lite}" ${SPOT:+--spot}
fi

archive=$(mktemp -d)/haikd.tar.gz
trap 'rm -r "$(dirname "$archive")"' EXIT
run tar -czf "$archive" --exclude=.git --exclude=runs --exclude=.venv \
  --exclude=__pycache__ -C "$root" .
run "${tpu[@]}" scp "$archive" "$name:haikd.tar.gz" "${where[@]}" --worker=all
everywhere "mkdir -p haikd && tar -xzf haikd.tar.gz -C haikd &&\
 python3 -m venv .haikd && .haikd/bin/pip install -q -e 'haikd[gcs]' 'jax[tpu]'"
[[ -n ${MOUNT:-} ]] && everywhere "$MOUNT"
everywhere "cd haikd && exec ../.haikd/bin/python -m haikd.launch$(printf ' %q' "$@")"
