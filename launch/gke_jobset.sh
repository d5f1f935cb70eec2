#!/usr/bin/env bash
# Runs haikd on TPU slices of a GKE cluster, as a JobSet.
#
#   IMAGE=… BUCKET=… launch/gke_jobset.sh NAME -- --config=configs/x.py --workdir=gs://my-bucket/x
#
# Fills in launch/gke_jobset.yaml and hands it to kubectl. The workdir is in a
# bucket; the bucket is also mounted as /bucket in all pods, for data that is read
# as files. What fails or is pre-empted starts again and goes on from the newest
# checkpoint.
#
#   IMAGE=...              with haikd[gcs] and jax[tpu] installed, and the configs
#                          in its working directory.
#   BUCKET=...             of Cloud Storage, without gs://.
#   ACCELERATOR=...        tpu-v5-lite-podslice by default.
#   TOPOLOGY=4x4           of a slice.
#   CHIPS=4                that a machine has.
#   SLICES=1               how many slices.
#   RESTARTS=100           how often to start again.
#   SERVICE_ACCOUNT=...    that may write the bucket; default by default.
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
  echo "gke_jobset.sh: CHIPS must divide TOPOLOGY; got $CHIPS, $TOPOLOGY." >&2
  exit 2
fi
export NODES=$((total / CHIPS))

# Quotes an argument for JSON, which YAML contains. Kubernetes replaces $(NAME)
# in a command; $$ stands for one dollar.
quote() {
  local text=$1
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\n'/\\n}
  text=${text//$'\t'/\\t}
  text=${text//'$'/'$$'}
  printf '"%s"' "$text"
}

COMMAND="[$(quote python)"
for word in -m haikd.launch "$@"; do
  COMMAND+=", $(quote "$word")"
done
export COMMAND="$COMMAND]"

template=$(dirname "$0")/gke_jobset.yaml
variables='NAME IMAGE BUCKET ACCELERATOR TOPOLOGY CHIPS SLICES RESTARTS
SERVICE_ACCOUNT NODES COMMAND'

# Replaces each ${NAME} of the template once; what stands in a value stays.
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
