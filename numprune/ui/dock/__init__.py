"""What stands below the map, a file each; only the part that is open is drawn."""
