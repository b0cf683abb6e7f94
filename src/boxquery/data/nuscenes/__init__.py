"""nuScenes as it is downloaded, read with json, NumPy and Pillow alone."""
