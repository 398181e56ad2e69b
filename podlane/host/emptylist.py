"""The list of revoked certificates that etcd begins with on a new host.

Owns: a constant. Why: with --client-crl-file etcd answers nobody while there is no list, so one is there
before it starts, whatever comes first of authority, join service and upgrade. It revokes nothing, its number
is 0, so that every other is newer, and nobody has the key it was signed with: etcd checks no signature of it.
"""

EMPTY_LIST = """\
-----BEGIN X509 CRL-----
MIGnMFACAQEwCgYIKoZIzj0EAwIwETEPMA0GA1UEAwwGbm9ib2R5Fw0yNjAxMDEw
MDAwMDBaFw00OTEyMzEwMDAwMDBaoA4wDDAKBgNVHRQEAwIBADAKBggqhkjOPQQD
AgNHADBEAiBPECRjJj8uhHYidmVk61AAE2u5T2SNmVkx8x/v60rGIwIgfJDrvP/z
olPB/GIWvjHU71eRsEtCrSGtU8TZZpshlkc=
-----END X509 CRL-----
"""
