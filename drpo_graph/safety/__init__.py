"""Nothing secret leaves, nothing foreign is obeyed: files, keys, terminals, texts."""
