export BATCH=4
if [ -f /etc/profile.d/modules.sh ]; then source /etc/profile.d/modules.sh; fi
