"""The steps of the page, one file each: `build` makes the components, `wire` connects them."""
