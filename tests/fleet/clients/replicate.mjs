// npm's replicate against ADDRESS, the one thing that is changed: node replicate.mjs ADDRESS KEY FINETUNE ARCHIVE
import { readFile } from "node:fs/promises";
import Replicate from "replicate";

const [address, auth, finetune_id, archive] = process.argv.slice(2);
const replicate = new Replicate({ auth, baseUrl: `${address}/v1` });
const input = { prompt: "an owl, LINEICON style", finetune_id, steps: 2, seed: 7, output_format: "png" };
const drawing = "black-forest-labs/flux-pro-finetuned";
const told = {};

const bytesOf = async (output) => Buffer.from(await new Response(output).arrayBuffer()).toString("base64");
const failure = async (call) => {
  try {
    await call();
    return null;
  } catch (error) {
    return error.message;
  }
};

told.byName = await bytesOf(await replicate.run(drawing, { input }));
told.byVersion = await bytesOf(await replicate.run(`${drawing}:8e3d4f0a`, { input }));

const polled = await replicate.run(drawing, { input, wait: { mode: "poll", interval: 50 } });
told.polled = Buffer.from(await (await fetch(polled)).arrayBuffer()).toString("base64");

const training = await replicate.predictions.create({
  model: "black-forest-labs/flux-pro-trainer",
  input: { input_images: await readFile(archive), training_steps: 6000, captioning: "captioning-disabled" },
});
told.files = (await replicate.files.list()).results.length;
told.created = training.status;
told.canceled = (await replicate.predictions.cancel(training.id)).status;

told.refused = await failure(() => replicate.run(drawing, { input: { ...input, steps: 51 } }));
told.unknown = await failure(() => replicate.run("black-forest-labs/flux-schnell", { input }));
const pages = [];
for await (const page of replicate.paginate(replicate.predictions.list)) pages.push(page.length);
told.pages = pages;
told.model = (await replicate.models.get("black-forest-labs", "flux-pro-finetuned")).latest_version.id.length;
told.secret = (await replicate.webhooks.default.secret.get()).key.slice(0, 6);
console.log(JSON.stringify(told));
