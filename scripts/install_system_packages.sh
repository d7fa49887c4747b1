#!/usr/bin/env bash
# Debian packages that tests use: a C compiler, SIMDe (AVX-512 on any processor), a Java toolchain to compile the contract, a browser to look at pages, a Redis.
set -euo pipefail
packages=(gcc libc6-dev default-jdk-headless protobuf-compiler libprotobuf-dev libgrpc-java libprotobuf-java protobuf-compiler-grpc-java-plugin chromium fonts-noto-cjk redis-server libsimde-dev)
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
  echo "Not installed, and can't be from here: ${missing[*]}. The tests that need them will skip." >&2
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
