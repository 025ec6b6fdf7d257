"""What the local pages `tl label` and `tl review` share: access, bodies of requests, thumbnails, start and stop."""
