// npm's @ai-sdk/replicate against ADDRESS: node ai-sdk.mjs ADDRESS KEY FINETUNE
import { createReplicate } from "@ai-sdk/replicate";

const [address, apiToken, finetune_id] = process.argv.slice(2);
const replicate = createReplicate({ apiToken, baseURL: `${address}/v1` });
const ask = (model, options) =>
  replicate.image(model).doGenerate({
    prompt: "an owl, LINEICON style",
    n: 1,
    aspectRatio: "1:1",
    seed: 7,
    providerOptions: { replicate: { finetune_id, steps: 2, output_format: "png", ...options } },
    headers: {},
  });

const images = [];
for (const model of ["black-forest-labs/flux-pro-finetuned", "black-forest-labs/flux-pro-finetuned:8e3d4f0a"]) {
  images.push(...(await ask(model)).images.map((image) => Buffer.from(image).toString("base64")));
}
let refused = null;
try {
  await ask("black-forest-labs/flux-pro-finetuned", { num_inference_steps: 20 });
} catch (error) {
  refused = error.message;
}
console.log(JSON.stringify({ images, refused }));
