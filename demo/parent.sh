#!/bin/sh
# parent.sh [--output DIR] IMAGE [OPTIONS OF IMGPROXY] - a parent of imgproxy in POSIX shell.
#
# It fetches every layer of an image. jq parses JSON; the other programs are Debian's coreutils.
# Without --sockfd, imgproxy serves its standard input and output; here they are two named pipes.
# A request is sent only when the previous reply has been read to its end, so a program that reads a
# reply can never read a part of the next one.
set -eu

directory=
if [ "${1-}" = --output ] && [ $# -gt 1 ]; then
    directory=$2
    shift 2
fi
case ${1--} in
    -*)
        echo "usage: parent.sh [--output DIR] IMAGE [OPTIONS OF IMGPROXY]" >&2
        exit 1
        ;;
esac
image=$1
shift
imgproxy=${IMGPROXY:-imgproxy}

child='' part='' retryable=false again=75 # EX_TEMPFAIL of sysexits.h
work=$(mktemp -d)
trap 'rm -rf "$work"; rm -f "$part" 2>/dev/null' EXIT
trap 'exit 1' INT TERM

# Close both pipes, which ends imgproxy, report a failure of it, and exit; with $1 if it succeeded.
finish() {
    exec 3>&- 4<&-
    wait "$child" 2>/dev/null || { # some shells report a signal themselves
        status=$?
        how="exit status $status"
        if [ $status -gt 128 ]; then how="killed by signal $((status - 128))"; fi
        last=$(tail -n 1 "$work/stderr")
        echo "imgproxy: $how${last:+: $last}" >&2
        if [ $status -eq 5 ]; then retryable=true; fi # the source was lost
        set -- 1
    }
    if $retryable; then exit $again; fi
    exit "$1"
}

fail() {
    echo "failed: $1" >&2
    if [ ! "$child" ]; then exit 1; fi
    finish 1
}

# ask METHOD PATH: send a request, and read the head of the reply; its body is for `receive`.
ask() {
    path=$2 length='' digest=''
    printf '%s %s HTTP/1.1\r\nHost: imgproxy\r\n\r\n' "$1" "$path" 2>/dev/null >&3 || :
    read -r _ code _ <&4 || fail "$path: no reply"
    while IFS=': ' read -r name value <&4 && [ "$name" != "$cr" ]; do
        case $name in
            [Cc]ontent-[Ll]ength) length=${value%"$cr"} ;;
            [Mm]anifest-[Dd]igest) digest=${value%"$cr"} ;;
        esac
    done
    [ "$length" ] || fail "$path: no reply"
    [ "$code" = 200 ] && return
    receive >"$work/error"
    retryable=$(jq '.errors[0].detail.retryable == true' "$work/error")
    fail "$path: $code $(jq -r '.errors[0] | .code + ": " + .message' "$work/error")"
}
cr=$(printf '\r')

# Copy as many bytes of the reply as its head has announced, and no more.
progress=none
if [ -t 2 ]; then progress=progress; fi
receive() {
    dd bs=256K count="$length" iflag=fullblock,count_bytes status=$progress <&4
}

# check RECEIVED: every parent must compare the length, since the body of a bad blob is cut short.
check() {
    [ "$1" -eq "$length" ] || fail "$path: short body, $1 of $length bytes"
}

command -v "$imgproxy" >/dev/null || fail "cannot start $imgproxy"
if [ "$directory" ]; then mkdir -p "$directory" || fail "cannot make $directory"; fi
mkfifo "$work/requests" "$work/replies"
"$imgproxy" "$@" "$image" <"$work/requests" >"$work/replies" 2>"$work/stderr" &
child=$!
exec 3>"$work/requests" 4<"$work/replies"
trap '' PIPE # otherwise the end of imgproxy would kill this shell before it reports the exit status

ask GET /manifest
receive >"$work/manifest"
check "$(wc -c <"$work/manifest")"
echo "manifest $digest"
jq -r '.config | "config \(.digest) \(.size) bytes"' "$work/manifest"
for blob in $(jq -r '.layers[].digest' "$work/manifest"); do
    ask GET "/blobs/$blob"
    if [ "$directory" ]; then part=$directory/${blob%:*}-${blob#*:}.part; fi
    # Three programs read the blob at once: one writes the file, one hashes, one counts.
    received=$(
        {
            receive | { tee ${part:+"$part"} /dev/fd/5 || : >"$work/unsaved"; } |
                "${blob%:*}sum" >"$work/hash"
        } 5>&1 | wc -c
    )
    if [ -e "$work/unsaved" ]; then fail "cannot write $part"; fi
    check "$received"
    read -r hash _ <"$work/hash"
    [ "$hash" = "${blob#*:}" ] || fail "$path: does not match its digest"
    if [ "$part" ]; then mv "$part" "${part%.part}"; fi
    echo "layer $blob $received bytes"
done
ask POST /quit
finish 0
