#!/usr/bin/env bash
# A pre-training run on TPUs of GKE as a JobSet: rendered, submitted once, looked at, deleted.
set -euo pipefail
# shellcheck source=flags.sh
source "$(dirname "${BASH_SOURCE[0]}")/flags.sh"

summary 'A pre-training run on GKE as a JobSet. What follows -- are arguments of scmbert pretrain.

  gke_jobset.sh submit --name run1 --image REGISTRY/scmbert:1 --tpu tpu-v6e-slice --topology 4x4 \
      --volume-claim runs -- base_110m --corpus gs://bucket/corpus --run-dir /data/run1
  gke_jobset.sh logs --name run1'
verb render 'print the JobSet'
verb submit 'create it, if it is not there'
verb status 'show the JobSet and its pods'
verb logs 'follow the output of the coordinator'
verb delete 'delete it with its pods, if it is there'
flag name '' 'name of the JobSet'
flag namespace default 'namespace'
flag image '' 'for render, submit: container image with scmbert and jax[tpu]'
flag tpu '' 'for render, submit: kind of TPU: tpu-v5-lite-podslice, tpu-v5p-slice, tpu-v6e-slice'
flag topology '' 'for render, submit: chips of a slice: 4x4, 2x2x4, ...'
flag chips-per-host 4 'chips of a host'
flag slices 1 'number of slices'
flag spot false 'run on Spot nodes'
flag volume-claim '' 'persistent volume claim that all hosts see: run folder, corpus (Filestore, Lustre, a bucket by GCS FUSE)'
flag mount /data 'where it is mounted'
flag service-account default 'Kubernetes service account of the pods (it must reach the corpus and the run folder)'
flag compilation-cache '' 'folder or gs:// for compiled programs [MOUNT/jax_cache, or a temporary one without a claim]'
flag max-restarts 100 'how often a run that lost a host starts again'
flag grace 120 'seconds between SIGTERM and SIGKILL'
read_flags "$@"
need name namespace
namespace=${flags[namespace]} name=${flags[name]}
kubectl=(kubectl --namespace="$namespace")
checksum_key=scmbert.rendered-sha256

json_string() {
    local text=${1//\\/\\\\}
    text=${text//\"/\\\"} text=${text//$'\n'/\\n} text=${text//$'\t'/\\t}
    printf '"%s"' "$text"
}
json_list() {
    local item list=''
    for item in "$@"; do list+="${list:+, }$(json_string "$item")"; done
    printf '[%s]' "$list"
}

render() { # the YAML, into $rendered
    need image tpu topology
    need_number chips-per-host slices max-restarts grace
    [ "${#words[@]}" -gt 0 ] || refuse 'arguments of scmbert pretrain are missing: -- EXPERIMENT --corpus ... --run-dir ...'
    [[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] || refuse "--name $name: expected up to 40 lower-case letters, digits and dashes"
    [[ ${flags[topology]} =~ ^[0-9]+(x[0-9]+){1,2}$ ]] || refuse "--topology ${flags[topology]}: expected 4x4 or 2x2x4, say"
    local chips=$((${flags[topology]//x/*})) selector volumes='[]' mounts='[]' cache=${flags[compilation-cache]}
    if [ "$chips" -le "${flags[chips-per-host]}" ]; then hosts=1 per_host=$chips
    else hosts=$((chips / flags[chips-per-host])) per_host=${flags[chips-per-host]}; fi
    [ $((hosts * per_host)) = "$chips" ] || refuse "--topology ${flags[topology]}: $chips chips are no multiple of --chips-per-host $per_host"
    selector="{cloud.google.com/gke-tpu-accelerator: $(json_string "${flags[tpu]}"), cloud.google.com/gke-tpu-topology: $(json_string "${flags[topology]}")"
    ! "${flags[spot]}" || selector+=', cloud.google.com/gke-spot: "true"'
    if [ -n "${flags[volume-claim]}" ]; then
        volumes="[{name: shared, persistentVolumeClaim: {claimName: $(json_string "${flags[volume-claim]}")}}]"
        mounts="[{name: shared, mountPath: $(json_string "${flags[mount]}")}]"
        cache=${cache:-${flags[mount]}/jax_cache}
    fi
    local -A value=(
        [name]=$(json_string "$name") [namespace]=$(json_string "$namespace") [max_restarts]=${flags[max-restarts]}
        [slices]=${flags[slices]} [hosts]=$hosts [service_account]=$(json_string "${flags[service-account]}")
        [grace]=${flags[grace]} [node_selector]="$selector}" [image]=$(json_string "${flags[image]}")
        # 75: a run that was stopped must not look like one that is done, or the JobSet would be complete.
        [command]=$(json_list scmbert pretrain "${words[@]}" --multihost)
        [compilation_cache]=$(json_string "${cache:-/tmp/jax_cache}") [chips_per_host]=$per_host
        [volume_mounts]=$mounts [volumes]=$volumes
    )
    local line key
    rendered=''
    while IFS= read -r line; do # each line has one place at most, so nothing is looked for in what was filled in
        if [[ $line =~ @([a-z_]+)@ ]]; then
            key=${BASH_REMATCH[1]}
            line=${line/"@$key@"/"${value[$key]}"}
        fi
        rendered+=$line$'\n'
    done < "$(dirname "${BASH_SOURCE[0]}")/jobset.yaml.template"
    checksum=$(sha256sum <<< "$rendered" | cut -c1-16)
    rendered=${rendered/"  annotations:"$'\n'/"  annotations:"$'\n'"    $checksum_key: \"$checksum\""$'\n'}
}

look=("${kubectl[@]}" get jobset "$name" --ignore-not-found "-o=jsonpath={.metadata.name} {.metadata.annotations.scmbert\\.rendered-sha256}")
there() { # "NAME CHECKSUM", or nothing when there is none, into $found
    found=$("${look[@]}") || die "failed with exit code $?: $(quoted "${look[@]}")"
    found=${found## }
}

case $chosen_verb in
    render)
        render
        printf '%s' "$rendered"
        ;;
    submit)
        render
        if $dry_run; then
            quoted "${look[@]}"
            echo '# if it is not there:'
            printf '%s <<END\n%sEND\n' "$(quoted "${kubectl[@]}" create -f -)" "$rendered"
            exit
        fi
        there
        if [ -z "$found" ]; then run "${kubectl[@]}" create -f - <<< "$rendered"
        elif [ "$found" = "$name $checksum" ]; then say "$name is there already; not created again"
        else die "another JobSet $name is there, of other parameters; delete it first, or choose another --name"; fi
        ;;
    status)
        run "${kubectl[@]}" get jobset "$name"
        run "${kubectl[@]}" get pods -o=wide "--selector=jobset.sigs.k8s.io/jobset-name=$name"
        ;;
    logs)
        run "${kubectl[@]}" logs --follow --container=scmbert \
            "--selector=jobset.sigs.k8s.io/jobset-name=$name,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
        ;;
    delete) run "${kubectl[@]}" delete jobset "$name" --ignore-not-found ;;
esac
