#!/bin/sh
# try.sh GALLERY BUNDLE: run the steps of the image without Docker. Install into a new folder, start the server as a user
# without rights, wait until it is healthy, search, look at the metrics, and stop it. Needs root, for the other user.
set -eu
cd "$(dirname "$0")/.."
gallery=$(realpath "$1")
bundle=$(realpath "$2")
place=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill -9 "$server" 2> /dev/null || true; rm -rf "$place"' EXIT
chmod 755 "$place"
sh docker/install.sh . "$place/chan"
echo "installed: $(du -sm "$place/chan" | cut -f1) MB"
export CHAN_PORT=18765
setpriv --reuid 10001 --regid 10001 --clear-groups "$place/chan/bin/chan" serve --host 127.0.0.1 --log json \
  --port "$CHAN_PORT" "searched=$gallery" --bundle "$bundle" 2> "$place/log" &
server=$!
tries=0
until "$place/chan/bin/python" "$place/chan/healthy.py" 2> "$place/why"; do
  tries=$((tries + 1))
  if [ "$tries" -gt 60 ] || ! kill -0 "$server" 2> /dev/null; then
    cat "$place/why" "$place/log"
    exit 1
  fi
  sleep 1
done
echo "healthy after $tries seconds, as user $(ps -o uid= -p "$server" | tr -d ' ')"
curl --fail --silent --show-error "http://127.0.0.1:$CHAN_PORT/v1/search" -H 'content-type: application/json' \
  -d '{"captions": ["a red apple and a strawberry"], "k": 1}' | cut -c 1-200
curl --fail --silent --show-error "http://127.0.0.1:$CHAN_PORT/metrics" | grep '^chan_searches_total'
kill -TERM "$server"
wait "$server"
echo "stopped with status $?"
server=
