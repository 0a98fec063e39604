#!/bin/sh
# install.sh SOURCE TARGET: build the package from SOURCE and install it, with what the server needs, into a virtual
# environment at TARGET. The image and try.sh both do so.
set -eu
source=$1
target=$2
python3 -m venv "$target"
wheels=$(mktemp -d)
"$target/bin/pip" wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$wheels" "$source"
"$target/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir -c "$source/constraints.txt" \
  "$(echo "$wheels"/*.whl)[cpu,serve,otlp,pictures,bert]"
"$target/bin/pip" uninstall --quiet --yes pip
cp "$source/docker/healthy.py" "$target/healthy.py"
rm -r "$wheels"
