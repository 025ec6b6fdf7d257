// What the views are called, and what they say when they are empty. Pure.

export const TITLES = {
  next: "Next", suggested: "Suggested", all: "All", labeled: "Labeled", unsure: "Not sure", skipped: "Skipped", similar: "Similar", errors: "Errors",
};

export const NOTES = {
  next: "Images that teach the model most, and random ones that measure it.",
  suggested: "What the model is surest of comes first. Label what is wrong otherwise, then confirm the rest.",
  all: "Every image of the folder, by name.",
  labeled: "Press another class's key to correct a label.",
  unsure: "Images to decide later, perhaps with a colleague.",
  skipped: "Images left out. They get no label.",
  similar: "Not labeled yet, most similar first.",
  errors: "Files that cannot be read.",
};

/** view -> (what is known) -> {title, text, act}; `act`: what the button does. */
export const EMPTY = {
  next: ({ state }) => (state.num_images === 0 ?
    { title: "No images", text: "The folder contains no image that can be read. Stop the command, and give it another folder." } :
    { title: "Every image is decided", text: "Look at those you were not sure of, or make the model.", act: "model" }),
  suggested: ({ state, label, other }) => {
    const used = state.classes.filter(({ count }) => count > 0).length, { features } = state;
    if (other) return { title: `No more suggestions of ${label}`, text: `The model suggests ${other} for other images.`, act: "group" };
    if (used < 2) return { title: "No suggestions yet", text: "Label some images of two classes. Then the model suggests labels for the others, group by group.", act: "next" };
    if (features.error) return { title: "No suggestions", text: features.error, act: "next" };
    if (!state.head?.fitted_to || (features.done < features.total && other === null && label === null)) {
      return { title: "The model is not ready yet", text: "Suggestions appear as soon as enough images are read. You can label meanwhile.", act: "next" };
    }
    return { title: "No suggestions left", text: "Every image that the model may suggest a label for is decided.", act: "next" };
  },
  all: ({ search }) => ({ title: "No image found", text: search ? `No file name contains “${search}”.` : "The folder contains no image that can be read." }),
  labeled: ({ label, state }) => (label ? { title: `No image is labeled ${label}`, text: "Choose images and press the key of the class.", act: "next" } :
    state.classes.length === 0 ? { title: "Nothing is labeled yet", text: "Type a class name and press Enter, then press its number for each image.", act: "classes" } :
      { title: "Nothing is labeled yet", text: "Press the number of a class to label the image with the focus.", act: "next" }),
  unsure: () => ({ title: "No image waits for a decision", text: "Press X for an image that you are not sure of. It is kept here.", act: "next" }),
  skipped: () => ({ title: "No image is skipped", text: "Press S for an image that should have no label, such as a blurred one.", act: "next" }),
  similar: () => ({ title: "Nothing similar is left", text: "All similar images are decided, or the images are not read yet.", act: "next" }),
  errors: () => ({ title: "Every file can be read", text: "There is nothing to do here.", act: "next" }),
};
