"""An instance as a process of its own: it registers, then says again and again that it is there.

    python -m tests.faults.heartbeats URL NAMESPACE INSTANCE TTL

What it is answered it prints, a line each: the incarnation, then `ok` or the code and reason of a refusal, after
which it ends; where it is told to try again it does.
"""

import sys
import time

import httpx


def main(url: str, namespace: str, instance: str, ttl: str) -> None:
    path = f"{url}/api/v1/services/bank/instances/{instance}"
    with httpx.Client(headers={"Syros-Namespace": namespace}, timeout=20) as client:
        place = {"address": "127.0.0.1", "port": 80, "ttl_seconds": float(ttl)}
        incarnation = client.put(path, json=place).raise_for_status().json()["incarnation"]
        print(incarnation, flush=True)
        while True:
            time.sleep(float(ttl) / 3)
            answer = client.post(f"{path}/heartbeat", json={"incarnation": incarnation})
            if answer.status_code == 503:
                continue
            if answer.status_code != 200:
                problem = answer.json()
                print(problem["code"], problem.get("reason", ""), flush=True)
                return
            print("ok", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
