"""The shapes of names, labels and ports.

Owns: one function per kind of name; each takes the text and returns what is
wrong with it, or None. Source: apimachinery's pkg/util/validation
(RFC 1123, RFC 1035, RFC 6335 for port names).
"""

from __future__ import annotations

import re

_LABEL_1123 = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", re.ASCII)
_LABEL_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?", re.ASCII)
_SUBDOMAIN_1123 = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", re.ASCII)
_QUALIFIED_NAME = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]", re.ASCII)
_PORT_NAME = re.compile(r"[-a-z0-9]+", re.ASCII)
# since Kubernetes 1.30 (RelaxedEnvironmentVariableValidation): printable ASCII but "="
_ENV_NAME = re.compile(r"[ -<>-~]+", re.ASCII)
_CONFIG_KEY = re.compile(r"[-._A-Za-z0-9]+", re.ASCII)
_HEADER_NAME = re.compile(r"[-A-Za-z0-9]+", re.ASCII)

STANDARD_FINALIZERS = ("kubernetes", "orphan", "foregroundDeletion")
LOWER_LABEL = "lower case letters, digits and '-', beginning and ending with a letter or digit"


def dns_label_error(text: str) -> str | None:
    """RFC 1123 label: container names, namespaces, host names."""
    if len(text) > 63:
        return f"expected at most 63 characters, got {len(text)}"
    if not _LABEL_1123.fullmatch(text):
        return f'expected a DNS label ({LOWER_LABEL}), got "{text}"'
    return None


def dns_1035_label_error(text: str) -> str | None:
    """RFC 1035 label: service names, which unlike the others may not begin with a digit."""
    if len(text) > 63:
        return f"expected at most 63 characters, got {len(text)}"
    if not _LABEL_1035.fullmatch(text):
        return (
            "expected a DNS label (lower case letters, digits and '-', beginning with a letter "
            f'and ending with a letter or digit), got "{text}"'
        )
    return None


def dns_subdomain_error(text: str) -> str | None:
    """RFC 1123 subdomain: the names of most objects."""
    if len(text) > 253:
        return f"expected at most 253 characters, got {len(text)}"
    if not _SUBDOMAIN_1123.fullmatch(text):
        return f"expected a DNS name (labels of {LOWER_LABEL}, joined by '.'), got \"{text}\""
    return None


def label_key_error(text: str) -> str | None:
    """A label or annotation key: `name` or `dns.prefix/name`."""
    prefix, slash, name = text.rpartition("/")
    if slash and (not prefix or dns_subdomain_error(prefix)):
        return f'expected a DNS name before the "/" of the key, got "{text}"'
    if len(name) > 63:
        return f"expected a key of at most 63 characters, got {len(name)}"
    if not _QUALIFIED_NAME.fullmatch(name):
        return (
            "expected a key of letters, digits, '-', '_' and '.', beginning and ending with a letter "
            f'or digit, got "{text}"'
        )
    return None


def label_value_error(text: str) -> str | None:
    if len(text) > 63:
        return f"expected a value of at most 63 characters, got {len(text)}"
    if text and not _QUALIFIED_NAME.fullmatch(text):
        return (
            "expected a value of letters, digits, '-', '_' and '.', beginning and ending with a letter "
            f'or digit, got "{text}"'
        )
    return None


def port_name_error(text: str) -> str | None:
    """IANA_SVC_NAME (RFC 6335): the names of container ports and of target ports."""
    if len(text) > 15:
        return f'expected a port name of at most 15 characters, got "{text}" ({len(text)})'
    if not _PORT_NAME.fullmatch(text):
        return f"expected a port name of lower case letters, digits and '-', got \"{text}\""
    if not any("a" <= c <= "z" for c in text):
        return f'expected a port name with at least one letter, got "{text}"'
    if "--" in text or text[0] == "-" or text[-1] == "-":
        return f"expected a port name with no '-' at either end and no two together, got \"{text}\""
    return None


def port_number_error(port: int) -> str | None:
    return None if 1 <= port <= 65535 else f"expected a port number 1 to 65535, got {port}"


def env_name_error(text: str) -> str | None:
    if not _ENV_NAME.fullmatch(text):
        return f"expected a name of printable ASCII characters without '=', got \"{text}\""
    return None


def header_name_error(text: str) -> str | None:
    if not _HEADER_NAME.fullmatch(text):
        return f"expected an HTTP header name of letters, digits and '-', got \"{text}\""
    return None


def config_key_error(text: str) -> str | None:
    """A key of a config map or a secret, which may become a file's name."""
    if len(text) > 253:
        return f"expected a key of at most 253 characters, got {len(text)}"
    if not _CONFIG_KEY.fullmatch(text) or text == "." or text.startswith(".."):
        return f"expected a key of letters, digits, '-', '_' and '.', not beginning with \"..\", got \"{text}\""
    return None


def descending_path_error(text: str) -> str | None:
    """A path that leads down from where it is used."""
    if text.startswith("/") or ".." in text.split("/"):
        return f'expected a relative path without "..", got "{text}"'
    return None


def finalizer_error(text: str) -> str | None:
    """`orphan`, `foregroundDeletion`, or one with a domain such as `example.com/cleanup`."""
    if text in STANDARD_FINALIZERS:
        return None
    if "/" not in text:
        return f'expected {", ".join(STANDARD_FINALIZERS)} or a name with a domain such as example.com/x, got "{text}"'
    return label_key_error(text)


def is_integer(text: str) -> bool:
    """Whether it is an integer of 64 bits, as labels are compared by Gt and Lt."""
    return re.fullmatch(r"[+-]?\d{1,19}", text, re.ASCII) is not None and -(2**63) <= int(text) < 2**63
