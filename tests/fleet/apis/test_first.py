def test_it(api):
    print(api.get("/healthz").json(), len(api.get("/openapi.json").text))
    r = api.post("/v1/models/black-forest-labs/flux-pro-finetuned/predictions", {"input": {"prompt": "a"}})
    print(r.status_code, r.text)
    r = api.post("/v1/models/black-forest-labs/flux-pro-trainer/predictions", {"input": {"input_images": "http://x/y.zip", "image": 1}})
    print(r.status_code, r.text)
    r = api.post("/v1/models/black-forest-labs/flux-pro-trainer/predictions", {"input": {"input_images": "http://x/y.zip"}})
    print(r.status_code, r.text)
    r = api.post("/v1/flux-pro-finetuned", {"prompt": "a", "finetune_id": "x"})
    print(r.status_code, r.text)
    r = api.post("/trainings", {"input": {"input_images": "data:application/zip;base64,AAAA", "lora_rank":"16"}}, headers={"Prefer": "respond-async"})
    print(r.status_code, r.text)
    assert 0
