"""A hub on loopback: what the servers of models and of data sets have in common."""
import contextlib
import http.server
import json
import threading


class LocalHub(http.server.ThreadingHTTPServer):
    "Holds repositories (hub id -> commit and files by name) and remembers what it was asked."
    daemon_threads = True

    def __init__(self, handler):
        super().__init__(("127.0.0.1", 0), handler)
        self.repos, self.asked, self.url = {}, [], f"http://127.0.0.1:{self.server_port}"


class HubHandler(http.server.BaseHTTPRequestHandler):
    "A subclass says in `handle_any` what is answered."
    def log_message(self, *args): pass

    def reply(self, status, data=b"", **headers):
        self.send_response(status)
        for k, v in {"Content-Length": str(len(data)), **headers}.items(): self.send_header(k.replace("_", "-"), v)
        self.end_headers()
        if self.command != "HEAD": self.wfile.write(data)

    def json(self, thing): self.reply(200, json.dumps(thing).encode(), Content_Type="application/json")

    def do_GET(self): self.handle_any()

    do_HEAD = do_POST = do_GET


def about(hub_id, commit, files):
    "What a hub says of a repository."
    return {"id": hub_id, "sha": commit, "siblings": [{"rfilename": f} for f in files], "private": False,
            "gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0}


@contextlib.contextmanager
def serving(server):
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown(); server.server_close(); thread.join()
