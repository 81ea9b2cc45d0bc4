bash broken.sh
