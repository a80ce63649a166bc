async function savePicture(svg, name, kind) {
  let file = new Blob([svg], { type: "image/svg+xml" });
  if (kind === "png") {
    const image = new Image(), canvas = document.createElement("canvas"), scale = 2;
    image.src = URL.createObjectURL(file);
    await image.decode();
    [canvas.width, canvas.height] = [image.width * scale, image.height * scale];
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    URL.revokeObjectURL(image.src);
    file = await new Promise((done) => canvas.toBlob(done, "image/png"));
  }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = `${name}.${kind}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
