#!/usr/bin/env bash
# Runs haikd on all workers of a Cloud TPU pod slice.
#
#   launch/tpu_pod.sh NAME ZONE -- --config=configs/x.py --workdir=gs://my-bucket/x
#
# Copies this checkout to all workers, installs it there and starts the run on all
# of them at once; they find one another. The workdir must be in a bucket, or in a
# folder that all workers mount, such as Filestore. The exit code is that of the
# run. Start it again to resume from the newest checkpoint.
#
#   PROJECT=ID    the project; that of gcloud's configuration by default.
#   CREATE=v5litepod-16
#                 creates the slice first, with that accelerator type.
#   VERSION=...   the slice's software; v2-alpha-tpuv5-lite by default. To list:
#                 gcloud compute tpus tpu-vm versions list --zone=ZONE
#   SPOT=1        creates the slice as spot capacity.
#   MOUNT='...'   a command for each worker to run first, such as
#                 'gcsfuse --implicit-dirs my-bucket bucket'.
#   DRY_RUN=1     prints the commands instead of running them.
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

# Runs a command on all workers.
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
