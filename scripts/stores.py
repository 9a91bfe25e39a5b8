"""Small requests that ./test needs: a free port, a bucket in moto, a container in Azurite. Standard library only."""

import base64
import email.utils
import hashlib
import hmac
import socket
import sys
import time
import urllib.error
import urllib.request

# The account of every Azurite in the world, printed in its documentation.
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def put(url, headers, deadline_s=60):
    """Sends PUT until the server answers; an answer that is an error ends the attempts."""
    end = time.monotonic() + deadline_s
    while True:
        try:
            request = urllib.request.Request(url, data=b"", method="PUT", headers=headers)
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            sys.exit(f"PUT {url}: {error.code} {error.read()[:300]!r}")
        except OSError as error:
            if time.monotonic() > end:
                sys.exit(f"PUT {url}: {error}")
            time.sleep(0.2)


def container_headers(account, container):
    """Signs `PUT ?restype=container` with the account's shared key."""
    headers = {"x-ms-date": email.utils.formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    content_type = "application/octet-stream"
    canonical = "".join(f"{name}:{value}\n" for name, value in sorted(headers.items()))
    resource = f"/{account}/{account}/{container}\nrestype:container"
    text = f"PUT\n\n\n\n\n{content_type}\n\n\n\n\n\n\n{canonical}{resource}"
    digest = hmac.new(base64.b64decode(AZURITE_KEY), text.encode(), hashlib.sha256).digest()
    headers["Authorization"] = f"SharedKey {account}:{base64.b64encode(digest).decode()}"
    headers["Content-Type"] = content_type
    return headers


def main(wish, *rest):
    if wish == "free-port":
        print(free_port())
    elif wish == "make-bucket":
        endpoint, bucket = rest
        put(f"{endpoint}/{bucket}", {})
    elif wish == "make-container":
        endpoint, container = rest
        account = endpoint.rsplit("/", 1)[1]
        put(f"{endpoint}/{container}?restype=container", container_headers(account, container))
    else:
        sys.exit(f"unknown wish {wish}")


if __name__ == "__main__":
    main(*sys.argv[1:])
