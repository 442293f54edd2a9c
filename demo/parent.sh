#!/bin/sh
# parent.sh IMAGE [OPTIONS OF IMGPROXY] - a parent of imgproxy in POSIX shell.
#
# Without --sockfd, imgproxy serves its standard input and output; here they are two named pipes.
# The next request is sent when the last reply is read to its end, so whatever reads a reply can
# never take a part of the next one with it.
set -eu

if [ $# -eq 0 ]; then
    echo "usage: parent.sh IMAGE [OPTIONS OF IMGPROXY]" >&2
    exit 2
fi
image=$1
shift

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
mkfifo "$work/requests" "$work/replies"
imgproxy "$@" "$image" <"$work/requests" >"$work/replies" &
child=$!
exec 3>"$work/requests" 4<"$work/replies"
trap '' PIPE # an imgproxy that has ended is told by its exit status, and not by our death

# Close both pipes, which ends imgproxy, and tell how it ended.
finish() {
    exec 3>&- 4<&-
    status=0
    wait "$child" || status=$?
    echo "   imgproxy ended with exit status $status"
    [ "$status" -eq 0 ]
}

fail() {
    echo "   failed: $1"
    finish || :
    exit 1
}

# ask METHOD PATH FILE: put the body of the reply into the file, if the reply is a 200 and whole.
ask() {
    printf '%s %s HTTP/1.1\r\nHost: imgproxy\r\n\r\n' "$1" "$2" 2>/dev/null >&3 || :
    read -r _ code _ <&4 || fail "$1 $2: no reply"
    length=
    while IFS=': ' read -r name value <&4 && [ "$name" != "$(printf '\r')" ]; do
        case $name in
            [Cc]ontent-[Ll]ength) length=${value%"$(printf '\r')"} ;;
        esac
    done
    [ "$length" ] || fail "$1 $2: a reply without Content-Length"
    head -c "$length" <&4 >"$3"
    received=$(wc -c <"$3")
    [ "$code" = 200 ] || fail "$1 $2: $code $(cat "$3")"
    [ "$received" -eq "$length" ] || fail "$1 $2: short body, $received of $length bytes"
}

ask GET /manifest "$work/manifest"
# A shell reads no JSON. In earnest this is: jq -r '.layers[0].digest'
digest=$(tr -d '\n' <"$work/manifest" | sed 's/.*"layers"//' |
    grep -Eo '"digest" *: *"sha256:[0-9a-f]{64}"' | sed -n 1p | grep -Eo 'sha256:[0-9a-f]+') ||
    fail "the manifest names no layer by its SHA-256"
echo "   manifest, $length bytes; its first layer is $digest"

ask GET "/blobs/$digest" "$work/blob"
hash=$(sha256sum <"$work/blob")
[ "sha256:${hash%% *}" = "$digest" ] || fail "the layer is not what its digest says"
echo "   layer, $length bytes; sha256sum agrees with its digest"

ask POST /quit "$work/nothing"
finish
