#!/bin/sh
# Makes the certificates that tests/unit/networking/test_tls.py uses: two authorities and nodes of theirs. Valid for 100
# years and for nothing but tests. Needs openssl; run in this folder.
set -eu
authority() {
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 36500 -subj "/CN=$1" \
    -keyout "$1.key" -out "$1.pem"
}
node() { # authority, file, common name
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$3" -keyout "$2.key" -out "$2.csr"
  printf 'subjectAltName=DNS:exo-node,DNS:%s\n' "$3" > "$2.ext"
  openssl x509 -req -days 36500 -in "$2.csr" -CA "$1.pem" -CAkey "$1.key" -CAcreateserial -extfile "$2.ext" -out "$2.pem"
  rm "$2.csr" "$2.ext"
}
authority ours
authority theirs
node ours a a
node ours b b
node theirs stranger a
rm -f ours.key theirs.key ./*.srl
