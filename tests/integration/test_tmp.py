import time
from daemon_process import trainer, SMALL
from streams import *
import subprocess
def test_it(kafka, redis_url, topic, bank_name, tmp_path, redis_client):
    t=time.time()
    publish(kafka, topic, visits([0,1,2,0,1,2], 40))
    print("published", time.time()-t)
    t=time.time()
    with trainer("--kafka", kafka, "--redis", redis_url, "--topic", topic, "--bank", bank_name, "--burst", "--hot-masks=2", *SMALL, directory=tmp_path) as p:
        print("ready", time.time()-t)
        p.wait_for("batch.trained"); print("first", time.time()-t)
        p.wait(); print("done", time.time()-t)
    for l in p.lines:
        if l["event"]!="batch.trained" or "action" in l: print(l)
    print(p.lines[-3:]); print(p.other_lines)
    print({k: redis_client.hgetall(k) if redis_client.type(k)==b"hash" else redis_client.type(k) for k in sorted(redis_client.keys(f"supsup:{{{bank_name}}}:*"))})
