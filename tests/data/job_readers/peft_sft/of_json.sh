python train.py settings.json
