"""What to do about a server whose certificate is not accepted, in the words of a DSN.

libpq says what is wrong, but neither which file it has looked at nor what to change.
"""

from __future__ import annotations

import re
from typing import Final

_WRONG_NAME: Final = re.compile(r'server certificate for "([^"]*)".* does not match host name "([^"]*)"')


def tls_advice(said: str) -> str | None:
    """How to mend what libpq complains about; ``None`` if it is not about the server's certificate.

    :param said: the text of the error
    """
    if (names := _WRONG_NAME.search(said)) is not None:
        name, host = names.groups()
        return (
            f"the server's certificate is for {name!r}: write host={name} in the DSN (with hostaddr=ADDRESS if that "
            f"name leads elsewhere), or have one made for {host!r}"
        )
    if "certificate verify failed" in said:
        return (
            "the server's certificate was not signed by a CA that is trusted here, or has expired: name the "
            "certificate of its CA with sslrootcert=FILE in the DSN, or renew the server's"
        )
    if "root certificate file" in said:
        return (
            "name the certificate of the server's CA with sslrootcert=FILE in the DSN, or write sslrootcert=system for "
            "the CAs that this machine trusts"
        )
    if "does not support SSL, but SSL was required" in said:
        return (
            "the server has TLS switched off: set ssl = on there, with a certificate and its key, or do without by "
            "another sslmode in the DSN"
        )
    return None
