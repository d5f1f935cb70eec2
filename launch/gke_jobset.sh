#!/usr/bin/env bash
# Runs haikd on TPU slices of a GKE cluster, as a JobSet.
#
#   IMAGE=… BUCKET=… launch/gke_jobset.sh NAME -- --config=configs/x.py --workdir=gs://my-bucket/x
#
# Fills in launch/gke_jobset.yaml and passes it to kubectl. The workdir must be in
# a bucket. BUCKET is also mounted as /bucket in all pods, for data that is read as
# files. A run that fails or is pre-empted starts again and resumes from the newest
# checkpoint.
#
#   IMAGE=...              an image with haikd[gcs] and jax[tpu] installed, and the
#                          configs in its working directory.
#   BUCKET=...             a bucket of Cloud Storage, without gs://.
#   ACCELERATOR=...        the accelerator; tpu-v5-lite-podslice by default.
#   TOPOLOGY=4x4           the topology of a slice.
#   CHIPS=4                the number of chips of a machine.
#   SLICES=1               the number of slices.
#   RESTARTS=100           how often a run may start again.
#   SERVICE_ACCOUNT=...    an account that may write to the bucket; the account
#                          named default if not given.
#   PYTHON=...             the interpreter in the image; python3 by default.
#   DRY_RUN=1              prints the manifest and the command.
set -euo pipefail

if (($# < 2)) || [[ $2 != -- ]] || [[ -z ${IMAGE:-} || -z ${BUCKET:-} ]]; then
  sed -n '4p' "$0" | sed 's/^# */usage: /' >&2
  exit 2
fi
export NAME=$1 IMAGE BUCKET
shift 2
export ACCELERATOR=${ACCELERATOR:-tpu-v5-lite-podslice}
export TOPOLOGY=${TOPOLOGY:-4x4} CHIPS=${CHIPS:-4} SLICES=${SLICES:-1}
export RESTARTS=${RESTARTS:-100} SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-default}

total=1
for side in ${TOPOLOGY//x/ }; do
  total=$((total * side))
done
if ((total % CHIPS)); then
  echo "CHIPS must divide the chips of TOPOLOGY; got CHIPS=$CHIPS," \
    "TOPOLOGY=$TOPOLOGY, which has $total. Set CHIPS to those of a machine." >&2
  exit 2
fi
export NODES=$((total / CHIPS))

# Quotes an argument as JSON, which is also YAML. Kubernetes replaces $(NAME) in a
# command; $$ becomes one dollar.
quote() {
  local text=$1
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\n'/\\n}
  text=${text//$'\t'/\\t}
  text=${text//'$'/'$$'}
  printf '"%s"' "$text"
}

COMMAND="[$(quote "${IMAGE_PYTHON:-python3}")"
for word in -m haikd.launch "$@"; do
  COMMAND+=", $(quote "$word")"
done
export COMMAND="$COMMAND]"

template=$(dirname "$0")/gke_jobset.yaml
variables='NAME IMAGE BUCKET ACCELERATOR TOPOLOGY CHIPS SLICES RESTARTS
SERVICE_ACCOUNT NODES COMMAND'

# Replaces the ${NAME} in each line of the template. Values are not replaced again.
fill_in() {
  local line name
  while IFS= read -r line; do
    for name in $variables; do
      if [[ $line == *"\${$name}"* ]]; then
        line=${line%%"\${$name}"*}${!name}${line#*"\${$name}"}
        break
      fi
    done
    printf '%s\n' "$line"
  done <"$template"
}

if [[ -n ${DRY_RUN:-} ]]; then
  fill_in
  echo '# kubectl apply -f -'
else
  fill_in | kubectl apply -f -
fi
