#!/usr/bin/env bash
# Starts N processes of one run on this machine.
#
#   launch/local.sh N --config=configs/x.py [flags of python -m haikd.launch]
#
# The output of process 0 is shown. That of process i goes to
# $LOGS/process-<i>.log; its last lines are shown if the process fails. SIGINT and
# SIGTERM go to all processes. When one fails, the others end by themselves within
# a minute; the exit code is that of the first to fail.
#
#   DEVICES=2   gives each process two simulated CPU devices, to try things out;
#               without it, the machine's GPUs are divided evenly.
#   LOGS=DIR    the folder of the logs; a new temporary folder by default.
#   DRY_RUN=1   prints the commands instead of running them.
#   PYTHON=...  the interpreter; python3 by default.
set -u

usage() {
  sed -n '4p' "$0" | sed 's/^# */usage: /' >&2
  exit 2
}

[[ ${1:-} =~ ^[1-9][0-9]*$ ]] || usage
count=$1
shift
[[ ${1:-} == -- ]] && shift

python=${PYTHON:-python3}
port=$("$python" -c 'import socket
with socket.socket() as s:
  s.bind(("127.0.0.1", 0))
  print(s.getsockname()[1])') || exit 1

# Prints the variables that process $1 needs, as one NAME=VALUE a line.
environment() {
  local gpus share
  if ((count > 1)); then
    echo "HAIKD_COORDINATOR=127.0.0.1:$port"
    echo "HAIKD_NUM_PROCESSES=$count"
    echo "HAIKD_PROCESS_ID=$1"
  fi
  if [[ -n ${DEVICES:-} ]]; then
    echo 'JAX_PLATFORMS=cpu'
    echo "XLA_FLAGS=${XLA_FLAGS:-} --xla_force_host_platform_device_count=$DEVICES"
  elif ((count > 1)) && command -v nvidia-smi >/dev/null; then
    gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l)
    share=$((gpus / count))
    if ((share > 0)); then
      echo "CUDA_VISIBLE_DEVICES=$(seq -s, $(($1 * share)) $((($1 + 1) * share - 1)))"
    fi
  fi
}

if [[ -n ${DRY_RUN:-} ]]; then
  for ((i = 0; i < count; i++)); do
    mapfile -t variables < <(environment "$i")
    printf '%q ' env "${variables[@]}" "$python" -m haikd.launch "$@"
    echo
  done
  exit 0
fi

logs=${LOGS:-$(mktemp -d -t haikd-XXXXXX)}
mkdir -p "$logs"
set -m  # Otherwise background processes would ignore SIGINT.
pids=()
for ((i = 0; i < count; i++)); do
  mapfile -t variables < <(environment "$i")
  command=(env "${variables[@]}" "$python" -m haikd.launch "$@")
  if ((i == 0)); then
    "${command[@]}" &
  else
    "${command[@]}" >"$logs/process-$i.log" 2>&1 &
  fi
  pids+=($!)
done

forward() {
  kill -s "$1" "${pids[@]}" 2>/dev/null
}
trap 'forward INT' INT
trap 'forward TERM' TERM

code=0
left=$count
deadline=0
ended=()
while ((left > 0)); do
  for ((i = 0; i < count; i++)); do
    if [[ -n ${ended[i]:-} ]] || kill -0 "${pids[$i]}" 2>/dev/null; then
      continue
    fi
    wait "${pids[$i]}"
    ended[i]=$?
    left=$((left - 1))
    if ((ended[i] != 0)); then
      if ((code == 0)); then
        code=${ended[i]}
        deadline=$((SECONDS + 90))
      fi
      if ((i > 0)); then
        tail -n 5 "$logs/process-$i.log" | sed "s/^/[$i] /" >&2
      fi
    fi
  done
  if ((deadline > 0 && SECONDS > deadline)); then
    forward KILL
  fi
  sleep 0.2
done
exit "$code"
