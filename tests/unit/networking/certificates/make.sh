#!/bin/sh
# Makes the certificates that tests/unit/networking/test_tls.py uses: two authorities and nodes of theirs. Valid for 100
# years, from long before any machine's clock, and for nothing but tests. Needs openssl; run in this folder.
set -eu
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# `openssl ca`, because before openssl 3.4 it is the only one that takes the day a certificate begins.
cat > "$scratch/ca.cnf" <<END
[ca]
default_ca = tests
[tests]
database = $scratch/index
new_certs_dir = $scratch
rand_serial = yes
default_md = sha256
policy = any
unique_subject = no
[any]
commonName = supplied
[authority]
basicConstraints = critical, CA:true
subjectKeyIdentifier = hash
END
: > "$scratch/index"
request() { # key, common name
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$2" -keyout "$1" -out "$scratch/csr"
}
sign() {
  openssl ca -config "$scratch/ca.cnf" -batch -notext -startdate 20200101000000Z -enddate 21200101000000Z \
    -in "$scratch/csr" "$@"
}
authority() {
  request "$scratch/$1.key" "$1"
  sign -selfsign -keyfile "$scratch/$1.key" -extensions authority -out "$1.pem"
}
node() { # authority, file, common name
  request "$2.key" "$3"
  printf 'subjectAltName = DNS:exo-node, DNS:%s\n' "$3" > "$scratch/names"
  sign -cert "$1.pem" -keyfile "$scratch/$1.key" -extfile "$scratch/names" -out "$2.pem"
}
authority ours
authority theirs
node ours a a
node ours b b
node theirs stranger a
