"""Short names of engines. Strings, so that naming one engine does not import the other's packages."""

vllm = "rlft.sampling.vllm:VllmEngine"
transformers = "rlft.sampling.transformers:TransformersEngine"
