"""Pictures and captions as the page shows and changes them: folders, thumbnails, captions, what a person drops."""
