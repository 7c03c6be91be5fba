#!/usr/bin/env bash
# One command on all hosts of a TPU slice, of several slices, or of a list of machines, at the same time.
set -euo pipefail
# shellcheck source=flags.sh
source "$(dirname "${BASH_SOURCE[0]}")/flags.sh"

summary "Runs one command on all hosts at the same time, and fails when it fails on one.

  run_on_all_hosts.sh --name pod --zone us-east5-b -- scmbert pretrain base_110m --corpus gs://... --run-dir /runs/1 --multihost
  run_on_all_hosts.sh --hosts gpu1,gpu2 -- 'scmbert pretrain ... --coordinator \$COORDINATOR \\
      --num-processes \$NUM_PROCESSES --process-index \$PROCESS_INDEX'

A single word after -- is taken as a line of shell; several are quoted."
flag name '' 'TPU VM, or queued resource of several slices'
flag zone '' 'its zone'
flag project '' 'its project, if not the one gcloud is set to'
flag slices 1 'slices of the queued resource'
flag hosts '' 'instead: machines to reach by ssh, separated by commas; each is told COORDINATOR, NUM_PROCESSES, PROCESS_INDEX'
flag port 8476 'with --hosts: port of the coordinator, on the first machine'
read_flags "$@"
need_number slices port
[ "${#words[@]}" -gt 0 ] || refuse 'a command is missing: -- COMMAND'
line=${words[0]}
[ "${#words[@]}" = 1 ] || line=$(quoted "${words[@]}")

if [ -z "${flags[hosts]}" ]; then
    need name zone
    place=("${flags[name]}" --zone="${flags[zone]}" --worker=all)
    [ -z "${flags[project]}" ] || place+=(--project="${flags[project]}")
    if [ "${flags[slices]}" = 1 ]; then run gcloud compute tpus tpu-vm ssh "${place[@]}" --command="$line"
    else run gcloud compute tpus queued-resources ssh "${place[@]}" --node=all --command="$line"; fi
    exit
fi

[ -z "${flags[name]}" ] || refuse '--hosts and --name: give one of them'
IFS=, read -r -a hosts <<< "${flags[hosts]}"
on_host() { # INDEX
    run ssh -o BatchMode=yes "${hosts[$1]}" \
        "export COORDINATOR=${hosts[0]#*@}:${flags[port]} NUM_PROCESSES=${#hosts[@]} PROCESS_INDEX=$1; $line"
}
if $dry_run; then
    for index in "${!hosts[@]}"; do on_host "$index"; done
    exit
fi
processes=()
for index in "${!hosts[@]}"; do
    { on_host "$index" 2>&1 | sed -u "s/^/${hosts[$index]}: /"; } &
    processes+=($!)
done
failed=()
for index in "${!hosts[@]}"; do
    wait "${processes[$index]}" || failed+=("${hosts[$index]}")
done
[ "${#failed[@]}" = 0 ] || die "failed on: ${failed[*]}"
