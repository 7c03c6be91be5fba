#!/usr/bin/env bash
# Cloud TPU slices by queued resources: asked for once, waited for, deleted.
set -euo pipefail
# shellcheck source=flags.sh
source "$(dirname "${BASH_SOURCE[0]}")/flags.sh"

summary 'Cloud TPU slices by queued resources. Asking twice creates nothing twice.

  queued_resource.sh create --name pod --zone us-east5-b --accelerator-type v6e-16 --runtime-version v2-alpha-tpuv6e --spot
  queued_resource.sh delete --name pod --zone us-east5-b'
verb create 'create it if there is none, and wait until it is ACTIVE'
verb wait 'wait until it is ACTIVE'
verb status 'print its state; ABSENT when there is none'
verb delete 'delete it with its TPU VMs, if there is one'
flag name '' 'name of the queued resource; also of its TPU VM (of several slices: NAME-0, NAME-1, ...)'
flag zone '' 'zone'
flag project '' 'project, if not the one gcloud is set to'
flag accelerator-type '' 'for create: v5litepod-16, v5p-128, v6e-256, ...'
flag runtime-version '' 'for create: software of the TPU VMs: v2-alpha-tpuv5-lite, v2-alpha-tpuv5, v2-alpha-tpuv6e, ...'
flag slices 1 'for create: number of slices'
flag spot false 'for create: Spot VMs: cheaper, and preempted at any time'
flag service-account '' 'for create: the account of the TPU VMs (it must reach the corpus and the run folder)'
flag network '' 'for create: network of the TPU VMs'
flag replace false 'for create: one that has FAILED or was preempted (SUSPENDED) is deleted and created again'
flag patience 86400 'seconds to wait until it is ACTIVE; 0: do not wait'
flag poll 30 'seconds between two looks at the state'
read_flags "$@"
need name zone
[ "$chosen_verb" != create ] || need accelerator-type runtime-version
need_number slices patience poll

queued() { # VERB MORE...: the words of a gcloud command, into $command
    command=(gcloud compute tpus queued-resources "$1" "${flags[name]}" --zone="${flags[zone]}")
    [ -z "${flags[project]}" ] || command+=(--project="${flags[project]}")
    command+=("${@:2}")
}

look() { # the state, into $state; ABSENT when there is none
    local errors
    queued describe '--format=value(state.state)'
    errors=$(mktemp)
    if state=$("${command[@]}" 2> "$errors"); then
        rm "$errors"
        [ -n "$state" ] || die "no state in the answer of: $(quoted "${command[@]}")"
    elif grep -q NOT_FOUND "$errors"; then
        rm "$errors"
        state=ABSENT
    else
        cat "$errors" >&2
        rm "$errors"
        die "failed: $(quoted "${command[@]}")"
    fi
}

create() {
    queued create --accelerator-type="${flags[accelerator-type]}" --runtime-version="${flags[runtime-version]}" --async
    if [ "${flags[slices]}" = 1 ]; then command+=(--node-id="${flags[name]}")
    else command+=(--node-count="${flags[slices]}" --node-prefix="${flags[name]}"); fi
    ! "${flags[spot]}" || command+=(--spot)
    [ -z "${flags[service-account]}" ] || command+=(--service-account="${flags[service-account]}")
    [ -z "${flags[network]}" ] || command+=(--network="${flags[network]}")
    run "${command[@]}"
}

delete() {
    queued delete --force --quiet
    run "${command[@]}"
}

wait_until_active() {
    local until=$((SECONDS + flags[patience])) before=''
    [ "${flags[patience]}" -gt 0 ] || return 0
    while true; do
        look
        [ "$state" = "$before" ] || say "${flags[name]} is $state"
        before=$state
        case $state in
            ACTIVE) return ;;
            FAILED | SUSPENDING | SUSPENDED | DELETING | ABSENT)
                die "${flags[name]} is $state and will not become ACTIVE; see: gcloud compute tpus queued-resources describe ${flags[name]} --zone=${flags[zone]}" ;;
        esac
        [ "$SECONDS" -lt "$until" ] || die "${flags[name]} is still $state after ${flags[patience]} s (--patience); it stays in the queue"
        sleep "${flags[poll]}"
    done
}

if $dry_run; then
    queued describe '--format=value(state.state)'
    quoted "${command[@]}"
    case $chosen_verb in
        create)
            if "${flags[replace]}"; then echo '# if it is FAILED or SUSPENDED:'; delete; fi
            echo '# if there is none:'
            create
            echo "# then the first command every ${flags[poll]} s, until ACTIVE, ${flags[patience]} s at most"
            ;;
        wait) echo "# every ${flags[poll]} s, until ACTIVE, ${flags[patience]} s at most" ;;
        delete) echo '# if there is one:'; delete ;;
    esac
    exit
fi

case $chosen_verb in
    create)
        look
        case $state in
            ABSENT) create ;;
            FAILED | SUSPENDED)
                "${flags[replace]}" || die "${flags[name]} is there and $state; --replace deletes it and creates it again"
                delete
                create
                ;;
            *) say "${flags[name]} is there already ($state); not created again" ;;
        esac
        wait_until_active
        ;;
    wait) wait_until_active ;;
    status) look; echo "$state" ;;
    delete)
        look
        if [ "$state" = ABSENT ]; then say "there is no ${flags[name]}"; else delete; fi
        ;;
esac
