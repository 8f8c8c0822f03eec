"""The networks: localisation, pose (STN1), crop (STN2), U-Net, and their composition."""
