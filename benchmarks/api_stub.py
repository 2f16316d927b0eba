"""A server that speaks OpenAI's protocol and costs nothing: canned answers after a fixed time, in a process of its own.

python benchmarks/api_stub.py --port 8123 --latency-ms 50      # prints "ready PORT"; ends with its standard input

What stands before it is what a measurement shows: see `api_speed.py` and `peers.py`. A request is not read beyond its
length. GET /count says how many were answered.
"""
import argparse
import asyncio
import json
import os
import sys

TEXT = "There are three boxes with six pens each.\nThat is 3 * 6 = 18 pens in all.\nThe answer is \\boxed{18}."
USAGE = {"prompt_tokens": 120, "completion_tokens": 48, "total_tokens": 168}
NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


def packed(body, status="200 OK"):
    data = json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


def replies(name):
    same = {"id": "stub-1", "created": 0, "model": name, "usage": USAGE}
    text = {"index": 0, "text": TEXT, "logprobs": None, "finish_reason": "stop"}
    turn = {"index": 0, "message": {"role": "assistant", "content": TEXT}, "logprobs": None, "finish_reason": "stop"}
    card = {"id": name, "object": "model", "owned_by": "vllm", "root": name, "max_model_len": 8192}
    return {b"/v1/completions": packed({**same, "object": "text_completion", "choices": [text]}),
            b"/v1/chat/completions": packed({**same, "object": "chat.completion", "choices": [turn]}),
            b"/v1/models": packed({"object": "list", "data": [card]}),
            b"/version": packed({"version": "stub"})}


class Stub(asyncio.Protocol):
    n_answers, latency_s, canned, missing = 0, 0.0, {}, packed({"error": {"message": "no such path"}}, "404 Not Found")

    def connection_made(self, transport): self.transport, self.data = transport, b""

    def data_received(self, data):
        self.data = data = self.data + data if self.data else data
        while (end := data.find(b"\r\n\r\n")) >= 0:
            head = data[:end].lower()
            at = head.find(b"content-length:")
            size = int(head[at + 15:].split(b"\r", 1)[0]) if at >= 0 else 0
            if len(data) < end + 4 + size:
                if b"expect: 100-continue" in head: self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                return
            self.answer(data[:end].split(b" ", 2))
            self.data = data = data[end + 4 + size:]

    def answer(self, head):
        if head[1] == b"/count": return self.transport.write(packed({"n": Stub.n_answers}))
        reply = self.canned.get(head[1], self.missing)
        if head[0] != b"POST": return self.transport.write(reply)
        Stub.n_answers += 1
        if not self.latency_s: return self.transport.write(reply)
        asyncio.get_running_loop().call_later(self.latency_s, self.later, reply)

    def later(self, reply):
        if not self.transport.is_closing(): self.transport.write(reply)


async def serve(port):
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Stub, "127.0.0.1", port, backlog=1024)
    print("ready", server.sockets[0].getsockname()[1], flush=True)
    gone = asyncio.Event()
    loop.add_reader(0, lambda: os.read(0, 1) or gone.set())
    await gone.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency-ms", type=float, default=0)
    parser.add_argument("--name", default=NAME)
    given = parser.parse_args()
    Stub.latency_s, Stub.canned = given.latency_ms / 1000, replies(given.name)
    try:
        import uvloop
        uvloop.run(serve(given.port))
    except ImportError: asyncio.run(serve(given.port))


if __name__ == "__main__": sys.exit(main())
